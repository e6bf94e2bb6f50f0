#!/usr/bin/env python
"""Which size of the network pays on a cohort: with and without pretraining, on one fold.

The question of the paper's Table 8 and Figure 4, as a study that jobs/study.py would run too. With no options
it is a demo of a few steps on cohorts that it makes itself; --preset paper asks it of yours:

    ray job submit jobs/tune_model_size.py
    ray job submit --working-dir . -- python jobs/tune_model_size.py --preset paper \\
        --cohorts ukb=s3://bucket/ukb brats=s3://bucket/brats --storage s3://bucket/studies
    python jobs/tune_model_size.py --dry-run
"""

from brainfoundry.core.job import run_job
from brainfoundry.experiments.study_job import StudyConfig, study_job

DEFAULT = StudyConfig(study="tune_model_size")

if __name__ == "__main__":
    run_job(StudyConfig, study_job, description=__doc__, default=DEFAULT)
