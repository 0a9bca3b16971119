"""The records that cross borders, ids, positions, time, configuration and the shared protocols.

Everything may import `mainstem.schema`; it imports nothing of Mainstem.
"""
