#!/usr/bin/env python
"""Lesion masks for any number of scans, with fine-tuned networks, on every device of the cluster.

Scans may be a folder (one case a sub-folder, or case_flair.nii.gz, case_t1.nii.gz and so on), a BIDS dataset,
a BraTS or ATLAS tree, a cohort manifest or a shard set. Masks lie on the scans' own grids, as a BIDS
derivative with a table of lesions; several checkpoints are averaged. Safe to run again: it goes on.

Exit status: 0 every case has its mask; 3 some could not be predicted (predictions.jsonl says why); 2 wrong
options; 1 it could not be done.

    python jobs/predict.py --checkpoint runs/finetune/brats --input /data/cases --out /data/masks
    python jobs/predict.py --checkpoint run/fold0 run/fold1 --input /data/bids --flips --save-probabilities
    ray job submit -- python jobs/predict.py --checkpoint RUN --input s3://bucket/manifest.parquet --out OUT
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from brainfoundry.core import files, ray_session
from brainfoundry.core.job import run_job
from brainfoundry.prediction import report
from brainfoundry.prediction.cases import Case, check_ids
from brainfoundry.prediction.config import PredictConfig
from brainfoundry.prediction.models import find_models, load_check, window_of
from brainfoundry.prediction.outputs import Outputs
from brainfoundry.prediction.predictor import Job, Outcome
from brainfoundry.prediction.run import predict_all
from brainfoundry.prediction.sources import find_cases
from brainfoundry.prediction.spread import fleet, on_ray
from brainfoundry.prediction.tracking import track

SOME_FAILED = 3


def main(config: PredictConfig) -> int:
    # --- the networks, and what they want
    models = find_models(config.checkpoint)
    job = Job(
        models=models,
        options=config.options(window_of(models, config.window)),
        out=files.absolute(config.out),
        allow=config.allow,
        preprocess_timeout_s=config.preprocess_timeout_s,
        batch=config.batch,
    )
    # --- the scans, and the folder for the masks
    outputs = Outputs(job.out, job.models, job.options)
    outputs.check(overwrite=config.overwrite)
    source = find_cases(config, job.space.sources)
    check_ids(source.cases)
    report.announce(job, source)
    if config.dry_run:
        report.rehearse(job, source.cases)
        return 0
    load_check(models)
    outputs.prepare(source.uri, overwrite=config.overwrite)

    # --- on every device; a cluster is joined only if there is work
    def executor(job: Job, cases: Sequence[Case], /) -> Iterator[Outcome]:
        where = ray_session.connect(num_cpus=config.cpus)
        size = fleet(config.workers, len(cases))
        print(f"predicting {len(cases):,} cases on {where}: {size}", flush=True)
        yield from on_ray(size)(job, cases)

    result = predict_all(job, source.cases, executor)
    report.summarise(job, result)
    print(track(job, source, result, config.tracking))
    return SOME_FAILED if result.failed else 0


if __name__ == "__main__":
    run_job(PredictConfig, main, description=__doc__)
