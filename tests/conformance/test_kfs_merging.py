"""Clustering, merging, the image path and the video path of Chat-UniVi (conformance kfs/README.md)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from kfs_golden import golden_tensors, load, replay, selector_config

from kfs import merging


def project(root: Path, tokens: torch.Tensor) -> torch.Tensor:
    shapes = json.loads((root / "tiny_model.json").read_text())["shapes"]
    names = [f"model.mm_projector.{part}" for part in ("weight", "bias")]
    weights = golden_tensors(root, {name: shapes[name] for name in names})
    return torch.nn.functional.linear(tokens, weights[names[0]], weights[names[1]])


def test_clusters(golden: Callable[[str], Path]) -> None:
    spec, arrays = load(golden("kfs"), "dpc_knn")
    assert spec["cases"]
    for name, case in spec["cases"].items():
        of = {key[len(name) + 1 :]: arrays[key] for key in arrays if key.startswith(f"{name}_")}
        tokens = torch.from_numpy(of["x"])
        noise = replay(of["noise"]) if "noise" in of else None
        mask = torch.from_numpy(of["mask"]) if "mask" in of else None
        found = merging.cluster(tokens, case["k"], case["cluster_num"], noise, mask)
        np.testing.assert_array_equal(found.index, of["idx"], err_msg=name)
        if "centers" in of:
            np.testing.assert_array_equal(found.centres, of["centers"], err_msg=name)
        merged = merging.merge(tokens, found.index, case["cluster_num"])
        shares = merging.merge_shares(found.index, case["cluster_num"]).sum(dim=1)[..., None]
        ours = {"score": found.score, "knn": found.nearest, "merged": merged, "agg_weight": shares}
        for key in ours.keys() & of.keys():
            np.testing.assert_allclose(ours[key], of[key], rtol=0, atol=1e-5, err_msg=f"{name} {key}")


def test_weighted_merge(golden: Callable[[str], Path]) -> None:
    _, arrays = load(golden("kfs"), "dpc_knn")
    index = torch.from_numpy(arrays["w_idx"]).long()
    wanted = arrays["w_merged"]
    shares = merging.merge_shares(index, wanted.shape[1], torch.from_numpy(arrays["w_weight"])[..., 0])
    np.testing.assert_allclose(shares @ torch.from_numpy(arrays["w_x"]), wanted, rtol=0, atol=1e-5)
    np.testing.assert_allclose(shares.sum(dim=1)[..., None], arrays["w_agg_weight"], rtol=0, atol=1e-5)
    # Which merged token each one ended in: the one it has the whole of its share in.
    np.testing.assert_array_equal(shares.argmax(dim=1), arrays["w_idx_token"])


def test_cluster_counts(golden: Callable[[str], Path]) -> None:
    rules = load(golden("kfs"), "dpc_knn")[0]["ctm_rules"]
    assert rules
    for rule in rules:
        clusters = merging.cluster_count(rule["sample_ratio"], rule["N"])
        assert clusters == rule["cluster_num"], rule
        assert merging.neighbour_count(rule["k"], clusters) == rule["k_effective"], rule


def test_video_path(golden: Callable[[str], Path]) -> None:
    root = golden("kfs")
    spec, arrays = load(root, "video_tokens")
    names = [key.removesuffix("_features") for key in arrays if key.endswith("_features")]
    assert names
    for name in names:
        noise = replay(arrays[f"{name}_noise"]) if f"{name}_noise" in arrays else None
        patches = torch.from_numpy(arrays[f"{name}_features"])
        merged, events = merging.merge_video(patches, selector_config(root).merging, noise)
        assert events == spec[name]["events_in_output_order"], name
        groups = arrays[f"{name}_events"]
        assert events == [np.flatnonzero(groups == groups[event[0]]).tolist() for event in events], name
        np.testing.assert_allclose(
            project(root, merged), arrays[f"{name}_tokens"], rtol=0, atol=1e-4, err_msg=name
        )


def test_image_path(golden: Callable[[str], Path]) -> None:
    root = golden("kfs")
    _, arrays = load(root, "image_tokens")
    videos = [key.removesuffix("_features") for key in arrays if key.endswith("_features")]
    assert videos
    for video in videos:
        patches = torch.from_numpy(arrays[f"{video}_features"])
        levels, origins = merging.merge_levels(patches, selector_config(root).merging)
        for number, origin in enumerate(origins):
            np.testing.assert_array_equal(origin, arrays[f"{video}_level{number}"], err_msg=f"{video} {number}")
        merged = torch.cat(levels, dim=1)
        np.testing.assert_allclose(merged, arrays[f"{video}_merged"], rtol=0, atol=1e-4)
        np.testing.assert_allclose(project(root, merged), arrays[f"{video}_tokens"], rtol=0, atol=1e-4)
        if f"{video}_noisy_frame0_noise" in arrays:
            noise = replay(arrays[f"{video}_noisy_frame0_noise"])
            tokens = project(root, merging.merge_frames(patches[:1], selector_config(root).merging, noise)[0])
            np.testing.assert_allclose(tokens, arrays[f"{video}_noisy_frame0_tokens"], rtol=0, atol=1e-4)
