"""Writes timm_features.json: the stages that timm's `features_only` gives, for names that are ours.

    pip install torch timm && python tests/reference/make_timm_features.py NAME ...

Made by timm 1.0 with the names of `VARIANTS` and `ALIASES` of flaxcnn's registry; names that timm
does not know, or for which it lists no stages, are left out.
"""

import json
import sys
from pathlib import Path

import timm

features = {}
for name in sorted(sys.argv[1:]):
    try:
        info = timm.create_model(name, features_only=True).feature_info
    except RuntimeError:  # unknown to timm
        continue
    features[name] = {"channels": info.channels(), "reduction": info.reduction()}
lines = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in features.items()]
Path(__file__).with_name("timm_features.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
