#!/usr/bin/env python
"""A study: a grid of trainings with what they start from, run over Ray Tune, killed and resumed at will.

Give the study by its name (table4, table5, table6, table8, table9, fig4, ...) or as a YAML file of your own,
and the shard sets of its cohorts. With no options it runs a small study on demo cohorts that it makes itself:

    ray job submit jobs/study.py
    ray job submit --working-dir . -- python jobs/study.py table9 --preset reference \\
        --cohorts ukb=s3://bucket/ukb brats=s3://bucket/brats --storage s3://bucket/studies
    python jobs/study.py table9 --cohorts ukb=/data/ukb brats=/data/brats --devices 8 64 --dry-run
"""

from brainfoundry.core.job import run_job
from brainfoundry.experiments.study_job import StudyConfig, study_job

if __name__ == "__main__":
    run_job(StudyConfig, study_job, description=__doc__)
