"""Load an exported model and write its test logits: python examples/digits/reload.py EXPORT OUT"""

import sys
from pathlib import Path

from model import DigitsTransformer, digits, predict
from safetensors.torch import save_file

import basis_search as bs

model = bs.load_pretrained(DigitsTransformer(), Path(sys.argv[1]))
save_file({"logits": predict(model, digits()[2])}, sys.argv[2])
