"""What torchvision's box operators give: torchvision_boxes.json, by make_torchvision_boxes.py."""

import json
from pathlib import Path

GOLDEN = json.loads(Path(__file__).with_name("torchvision_boxes.json").read_text())
