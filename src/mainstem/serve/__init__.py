"""HTTP around an engine: what clients send is checked, stamped and handed on; answers name what is wrong.

`run(engine)` serves until it is told to end, `Background(engine)` serves from a thread, and
`create_app(engine)` is the bare ASGI application. `Engine` says what serving needs of the system.

    routes   the addresses                     wire     what is on the wire
    answers  each endpoint's work, no HTTP     convert  wire structs to records and back
    body     bytes to wire structs             faults   errors to answers
    lanes    threads for what blocks           openapi  the documents
"""

from mainstem.serve.app import MAX_BODY, create_app
from mainstem.serve.engine import Engine
from mainstem.serve.server import Background, run

__all__ = ["MAX_BODY", "Background", "Engine", "create_app", "run"]
