"""The gallery of a run: every kept dimension, in order, and the physics of the right designs and conditions."""

import csv
import json
import re

import numpy as np
import pytest
import torch

import data
import lvae
from tools import designs as designs_tool
from tools import gallery


def untrained(root):
    """A heatconduction2d run on 40 made-up designs, with an untrained model of nine dimensions: enough to draw."""
    rng = np.random.default_rng(0)
    x, y = np.meshgrid(np.linspace(0, 1, 101), np.linspace(0, 1, 101), indexing="ij")
    designs = np.stack([0.5 + 0.4 * np.sin(a * x + b) * np.cos(c * y) for a, b, c in rng.uniform(1, 9, (40, 3))])
    conditions = dict(volume=rng.uniform(0.3, 0.6, 40), length=rng.uniform(0, 1, 40))
    np.savez(root / "designs.npz", designs=designs.astype(np.float32), **conditions)
    flags = dict(problem="heatconduction2d", strategy="plummet", data=str(root / "designs.npz"), toy_dims=3)
    flags |= dict(n_epochs=5, latent_dim=19, lipschitz=30.0)
    loaded = data.load("heatconduction2d", flags["data"])
    torch.manual_seed(0)
    dims, folder = list(range(1, 19, 2)), root / "runs" / "abc"
    model = lvae.CompactLVAE(flags, (101, 101), dims, torch.randn(20, 9), 0.2)
    z = model.encode(loaded.train).detach()
    saved = dict(flags=flags, shape=[101, 101], dims=dims, latents=z, bandwidth=0.2, state=model.state_dict())
    folder.mkdir(parents=True)
    torch.save(saved, folder / "model.pt")
    config = dict(id="abc", name="heat-abc", flags=flags, data=loaded.fingerprint)
    (folder / "config.json").write_text(json.dumps(config))
    return folder, loaded


def test_gallery_of_a_run_and_what_cannot_be_drawn(tmp_path, capsys, monkeypatch):
    (folder, designs), drawn, pictures = untrained(tmp_path), [], gallery.images
    monkeypatch.setattr(gallery, "images", lambda *args: (drawn.append(args), pictures(*args))[1])
    assert gallery.main(["--run", str(folder), "--out", str(tmp_path), "--designs", "3", "--physics", "1"]) == 0
    page = tmp_path / "gallery-abc"
    assert str(page / "index.html") in capsys.readouterr().out
    text = (page / "index.html").read_text()
    assert re.findall("<h2>(.*?)</h2>", text) == ["Reconstructions, best to worst", "Physics", "Latent traversals"]
    assert "Each of the 9 kept dimensions" in text and "9 of 19 dims kept" in text
    assert text.count("<figcaption>") == 5 and 'alt=""' not in text
    assert "Dimensions 1 to 8 of 9" in text and "Dimensions 9 to 9 of 9" in text
    # each reconstruction carries its error, the smallest first
    found = [float(title.removeprefix("error ")) for title in drawn[0][2][1]]
    error = (lvae.load(folder)(designs.val) - designs.val).square().mean((1, 2, 3)).detach()
    assert found == sorted(found) and found[0] == pytest.approx(error.min().item(), rel=0.05)
    grows = [float(label.split("\n")[1].replace("−", "-")) for rows in drawn[1:] for label in rows[1]]
    assert len(grows) == 9 and grows == sorted(grows, reverse=True)
    with open(page / "tables" / "physics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["what"] for row in rows] == ["reconstruction", "sample"]
    for row in rows:  # the original's objective is that of its own conditions
        i = int(row["validation design"])
        conditions = {name: values[i].item() for name, values in designs.conditions["val"].items()}
        expected = designs_tool.objective("heatconduction2d", conditions, designs.val[i, 0].numpy().astype(float))
        assert float(row["objective of the original"]) == pytest.approx(expected, rel=1e-9)
        assert float(row["volume of the original"]) == pytest.approx(float(designs.val[i].mean()))

    bare, other, config = tmp_path / "bare", tmp_path / "other", (folder / "config.json").read_text()
    for made, text in ((bare, config), (other, re.sub(r'"sha256": "\w+"', '"sha256": "0"', config))):
        made.mkdir()
        (made / "config.json").write_text(text)
    (other / "model.pt").write_bytes((folder / "model.pt").read_bytes())
    cases = {
        "no model.pt; train with --save_model=True": ["--run", str(bare)],
        "it was trained on other designs": ["--run", str(other)],
        "--run nowhere: its config.json": ["--run", "nowhere"],
        "at least 2, and at least 0": ["--run", str(folder), "--designs", "1"],
    }
    for said, argv in cases.items():
        assert gallery.main([*argv, "--out", str(tmp_path / "none")]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
    assert not (tmp_path / "none").exists()
