"""The peer of p2_training_step that lives in an environment of its own: fbgemm's fused row-wise Adagrad on the CPU.

    python _fbgemm_step.py ZIPF THREADS

Reads lines `train STEPS`, `loss` or `version` and answers each by one line. Ids go in as they are: nothing is hashed.
"""

from __future__ import annotations

import sys
from importlib.metadata import version

import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
from fbgemm_gpu.split_table_batched_embeddings_ops_training import ComputeDevice, SplitTableBatchedEmbeddingBagsCodegen

from _training_step import BATCH, EPSILON, FIELDS, IDS, RATES, WIDTH, Arm, initial_rows


def fused(zipf: float) -> Arm:
    tables = SplitTableBatchedEmbeddingBagsCodegen(
        [(IDS, WIDTH, EmbeddingLocation.HOST, ComputeDevice.CPU)] * FIELDS,
        optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        learning_rate=RATES["row-wise Adagrad"],
        eps=EPSILON,
        pooling_mode=PoolingMode.SUM,
    )
    rows = torch.from_numpy(initial_rows()).view(FIELDS, IDS, WIDTH)
    for table, values in zip(tables.split_embedding_weights(), rows, strict=True):
        table.copy_(values)
    offsets = torch.arange(FIELDS * BATCH + 1)
    # field by field, as its kernels want the ids; the update is part of its backward
    return Arm(lambda ids: tables(torch.from_numpy(ids.T.ravel()), offsets), lambda: None, zipf)


def main() -> None:
    torch.set_num_threads(int(sys.argv[2]))
    arm = fused(float(sys.argv[1]))
    for line in sys.stdin:
        match line.split():
            case ["train", steps]:
                answer = str(arm.train(int(steps)))
            case ["loss"]:
                answer = str(arm.loss())
            case _:
                answer = f"fbgemm-gpu-cpu {version('fbgemm-gpu-cpu')}, torch {torch.__version__}"
        print(answer, flush=True)


if __name__ == "__main__":
    main()
