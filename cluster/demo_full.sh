#!/usr/bin/env bash
# All three stages and prediction, start to end, on one cluster: healthy brains -> pretraining -> tumour brains ->
# pretraining goes on -> fine-tuning with a decoder -> scores of held-out cases -> masks on the scans' own grids.
# `make demo-full` installs first and then runs this. Everything it makes lies below $BRAINFOUNDRY_HOME (runs/).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
begin=$SECONDS
step() { printf '\n=== %s  (%s s so far)\n' "$1" $((SECONDS - begin)); }
submit() { ray job submit -- python "$@"; }

step "1/8 local Ray cluster and MLflow"
cluster/local/up
source cluster/local/env
demo=$BRAINFOUNDRY_HOME/demo  # shared with `make demo`
full=$BRAINFOUNDRY_HOME/demo-full

step "2/8 two small cohorts: healthy brains as UK Biobank delivers them, tumours as BraTS does"
python jobs/make_demo.py --root "$demo/ukb"
python jobs/make_demo.py --cohort brats --root "$full/brats" --n-tumours 18

step "3/8 NIfTI -> shards, at 2 mm; 3 tumour cases to validate on, 4 to test on"
python jobs/prepare_ukb.py --source "$demo/ukb" --out "$demo/shards" --spacing-mm 2 --n-val 2 --rows-per-shard 4
if [[ ! -e $full/brats-shards/shardset.json ]]; then
    python jobs/prepare_brats.py --source "$full/brats" --out "$full/brats-shards" --spacing-mm 2 --rows-per-shard 6
fi
python jobs/split.py --shards "$full/brats-shards" --test 4 --val 3

step "4/8 stage 1: self-supervised pretraining on the healthy brains"
submit jobs/pretrain_ukb.py --preset demo --name full-1 --data.shards "$demo/shards"

step "5/8 stage 2: the same on the tumour brains, without their masks; two modalities more"
submit jobs/pretrain_brats.py --preset demo --name full-2 --data.shards "$full/brats-shards" \
    --init.checkpoint "$BRAINFOUNDRY_HOME/pretrain/full-1"

step "6/8 stage 3: fine-tuning with the decoder, validated beside the training"
submit jobs/finetune_brats.py --preset demo --name full-3 --data.shards "$full/brats-shards" \
    --init.checkpoint "$BRAINFOUNDRY_HOME/pretrain/full-2" --optim.steps 320

step "7/8 the test cases, which no stage has seen: scores, and pictures of the worst and the best"
submit jobs/evaluate.py --checkpoints "$BRAINFOUNDRY_HOME/finetune/full-3" --shards "$full/brats-shards" \
    --split test --out "$full/evaluation"

step "8/8 masks of the test cases' original scans, on their own 1 mm grids"
submit jobs/predict.py --checkpoint "$BRAINFOUNDRY_HOME/finetune/full-3" --input "$full/brats-shards/manifest.parquet" \
    --split test --out "$full/predictions"

step "done"
cat <<END
Where to look
  scores, pictures  $full/evaluation/evaluation.html   (the worst and the best, side by side)
  masks             $full/predictions   (a BIDS derivative; they overlay the scans of $full/brats)
  transfer tables   $BRAINFOUNDRY_HOME/pretrain/full-2/transfer.txt, $BRAINFOUNDRY_HOME/finetune/full-3/transfer.txt
  MLflow            $MLFLOW_TRACKING_URI   (later, without a cluster: make mlflow)
  Ray dashboard     $RAY_API_SERVER_ADDRESS   (token: cat $RAY_AUTH_TOKEN_PATH)
  to end it         make cluster-down
END
