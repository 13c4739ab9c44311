#!/usr/bin/env bash
# Uses an installed package in an empty folder, as `make test-wheel` calls it: configs, data, two ranks, an export, a question.
set -euo pipefail
[ -z "$(ls)" ] || { echo "expected an empty working folder"; exit 1; }
export DEMO_DIR=demo
case "$(python -c 'import minigptv2; print(minigptv2.__file__)')" in *site-packages*) ;; *) echo "not the wheel"; exit 1 ;; esac
minigptv2 configs list | grep -q launch/configs/stage3_instruct.yaml
minigptv2 plan stage2 --gpus 8 | grep -q zero3
minigptv2 mix data_recipes/stage1_light.yaml >/dev/null
for corpus in weak caption grounding refer vqa; do
  minigptv2 shards build "toy_$corpus" --limit 40 --output "demo/shards/train/toy_$corpus" >/dev/null
done
minigptv2 tokenizer --shards demo/shards/train --output demo/tokenizer >/dev/null
minigptv2 train toy_stage1 --processes 2 train.steps=2 train.warmup_steps=1 evaluate.every=0 \
  train.global_batch_size=8 train.micro_batch_size=4
python - <<'PYTHON'
from PIL import Image

Image.new("RGB", (64, 64), (200, 30, 30)).save("red.png")
PYTHON
minigptv2 ask --model demo/stage1/export red.png "[vqa] what color is it?" --max-new-tokens 4
minigptv2 configs copy . >/dev/null
minigptv2 config stage1 train.steps=3 | grep -q "launch/configs/stage1_pretrain.yaml"
echo "the wheel works in an empty folder"
