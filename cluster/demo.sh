#!/usr/bin/env bash
# The demo, start to end: cluster -> made-up UK Biobank cohort -> shards -> pretraining -> where to look.
# `make demo` installs first and then runs this. Everything it makes lies below $BRAINFOUNDRY_HOME (runs/).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
begin=$SECONDS
step() { printf '\n=== %s  (%s s so far)\n' "$1" $((SECONDS - begin)); }

step "1/4 local Ray cluster and MLflow"
cluster/local/up
source cluster/local/env
demo=$BRAINFOUNDRY_HOME/demo

step "2/4 a small cohort in UK Biobank's own file layout"
python jobs/make_demo.py --root "$demo/ukb"

step "3/4 NIfTI in zips -> shards, at 2 mm"
python jobs/prepare_ukb.py --source "$demo/ukb" --out "$demo/shards" --spacing-mm 2 --n-val 2 --rows-per-shard 4

step "4/4 self-supervised pretraining, submitted as a Ray job"
ray job submit -- python jobs/pretrain_ukb.py --preset demo --data.shards "$demo/shards"

step "done"
cat <<END
Where to look
  Ray dashboard   $RAY_API_SERVER_ADDRESS   (token: cat $RAY_AUTH_TOKEN_PATH)
  MLflow          $MLFLOW_TRACKING_URI   (later, without a cluster: make mlflow)
  run             the checkpoint and the loss figure are named above
  again           source cluster/local/env && ray job submit jobs/pretrain_ukb.py
  to end it       make cluster-down
END
