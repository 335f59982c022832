#!/usr/bin/env bash
# Makes the embedded model from nothing: OUT/model is what is shipped as dpo_core/embedded/model.
#
#   dpo_core/embedded/recipe.sh [OUT] [PART]
#
# OUT is runs/embedded if it is not given. All counts are divided by PART: 1 makes the model, in about an hour on two CPU
# cores; 100 only shows, in minutes, that every step runs. The same command again goes on where it stopped.
set -euo pipefail
out=${1:-runs/embedded} part=${2:-1}

if [ ! -e "$out/vae/config.json" ]; then
    python -m dpo_core.embedded.vae --out "$out/vae" --steps $((2200 / part)) --batch-size 16 --lr 2e-3 \
        --drawings $((6000 / part)) --tests $((512 / part)) --bf16
fi
python -m dpo_core.embedded.build --out "$out/model-0" --vae "$out/vae"

lesson() { # number, updates, warm-up, drawings, and how they are spoiled
    local number=$1 updates=$2 warmup=$3 drawings=$4
    local before="$out/model-$((number - 1))"
    shift 4
    python -m dpo_core.data.sources.drawings --out "$out/drawings-$number" --count $((drawings / part)) \
        --seed $((number - 1)) "$@"
    palate prepare family.model="$before" data.paths="[$out/drawings-$number]" data.resolution=64 \
        cache.folder="$out/latents-$number" cache.precision=bf16 cluster.num_workers=0
    palate train --config "tune_configs/demo/lesson-$number.yaml" run.storage="$out" family.model="$before" \
        data.paths="[$out/latents-$number]" loop.max_steps=$((updates / part)) optim.warmup_steps=$((warmup / part))
    python -m dpo_core.embedded.build --out "$out/model-$number" --trained "$out/lesson-$number/model" --fp16
}
lesson 1 2400 100 12000
lesson 2 1600 100 12000 --caption-noise 0.35
lesson 3 700 50 8000 --caption-noise 0.2 --spoiled 0.5
echo "made: $out/model-3"
