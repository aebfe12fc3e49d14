"""Distances in a space of features: what a fit to them gains, what is refused, and `lmsd.features`."""

import lmsd
import numpy as np
import pytest
import torch
from lmsd import features
from mixture import Mixture

OPTIONS = {"nfe": 2, "teacher_nfe": 32, "sigma_end": 0.002, "trajectories": 32, "held_out": 32}
COMPARED = {"teacher_nfe": 32, "sigma_end": 0.002, "held_out": 256}


class Spread:
    """Gaussian data of standard deviations 2, 1, 1/2, ...: no schedule of two calls is good for all."""

    like = np.empty((8, 2, 4))
    deviations = 2.0 ** -np.arange(-1, 7).reshape(2, 4)

    def begin(self, batch):
        return 80 * np.random.default_rng([3, batch]).normal(size=self.like.shape)

    def model(self, x, sigma):
        variance = self.deviations**2
        share = variance / (variance + sigma**2)
        return x * (share if isinstance(x, np.ndarray) else torch.from_numpy(share))


def two(x):
    """Two numbers of each trajectory, of those with small deviations."""
    return x[:, 1, :2] - x[:, 1, 2:]


def fitted(problem, like, begin, **options):
    found = lmsd.distill(problem.model, begin, like, progress=False, **{**OPTIONS, **options})
    (schedule,) = found.schedules.values()
    return schedule


def test_a_fit_to_features_is_nearer_in_them_with_either_kind_of_tensor():
    problem = Spread()
    kinds = {
        "numpy": (problem.like, problem.begin),
        "torch": (torch.from_numpy(problem.like), lambda batch: torch.from_numpy(problem.begin(batch))),
    }
    plain = fitted(problem, *kinds["numpy"])
    of_kind = {}
    for kind, (like, begin) in kinds.items():
        own = fitted(problem, like, begin, features=two)
        of_kind[kind] = lmsd.compare([plain, own], problem.model, begin, like, features=two, **COMPARED)
        assert of_kind[kind][1] < 0.7 * of_kind[kind][0]
        assert own.made_by["feature_weight"] == 1 and "feature_weight" not in plain.made_by
    assert of_kind["numpy"][0] == pytest.approx(of_kind["torch"][0])
    assert of_kind["numpy"][1] == pytest.approx(of_kind["torch"][1], rel=0.1)


def test_a_mixed_fit_is_nearer_in_the_mix():
    problem = Spread()
    options = {"features": two, "feature_weight": 0.7}
    plain, mixed = (fitted(problem, problem.like, problem.begin, **more) for more in ({}, options))
    measured = lmsd.compare([plain, mixed], problem.model, problem.begin, problem.like, **options, **COMPARED)
    assert measured[1] < 0.9 * measured[0]


def test_what_features_may_not_be_is_refused_by_name():
    problem = Mixture(size=8)
    asked = 0

    def of_growing_shape(x):
        nonlocal asked
        asked += 1
        return x.reshape(len(x), -1)[:, : 2 + asked]

    def refused(words, status=lmsd.Status.INVALID_TENSOR, **options):
        with pytest.raises(lmsd.Error, match=words) as error:
            fitted(problem, problem.like, problem.begin, **options)
        assert error.value.status == status

    refused(
        r"features returned a tensor of shape \[7, 2, 3\]; it must be \[8, ...\]", features=lambda x: x[1:]
    )
    refused(
        r"features returned .* \[8, 4\] for x of shape \[8, 2, 3\]; it must be \[8, 3\]",
        features=of_growing_shape,
    )
    argument, two = lmsd.Status.INVALID_ARGUMENT, lambda x: x[:, 0]
    refused("feature_weight is 0.5 but the problem has no features", argument, feature_weight=0.5)
    refused("feature_weight is 2; it must be 0 to 1", argument, features=two, feature_weight=2)
    refused("are not finite", lmsd.Status.NON_FINITE, features=lambda x: np.nan * x)
    with pytest.raises(ZeroDivisionError):
        fitted(problem, problem.like, problem.begin, features=lambda x: 1 // 0)
    with pytest.raises(lmsd.Error, match=r"features returned ndarray; it must be a torch tensor"):
        like = torch.from_numpy(problem.like)
        fitted(
            problem, like, lambda batch: torch.from_numpy(problem.begin(batch)), features=lambda x: x.numpy()
        )


def test_a_problem_file_may_have_features(tmp_path, lmsd_):
    file = tmp_path / "featured.py"
    file.write_text(
        "from mixture import Mixture\n"
        "class Featured(Mixture):\n"
        "    def features(self, x):\n"
        "        return 1000 * x[:, 0]\n"
        "def problem(plain=False):\n"
        "    return (Mixture if plain else Featured)(size=8)\n"
    )
    common = ["--problem", str(file), "--trajectories", "8", "--held-out", "16", "--nfe", "3", "--quiet"]
    lmsd_("distill", *common, "--out", tmp_path / "in.json")
    lmsd_("distill", *common, "--set", "plain=true", "--out", tmp_path / "without.json")
    of, without = (lmsd.Schedule.load(tmp_path / f"{name}.json").made_by for name in ("in", "without"))
    assert of["distance"] > 50 * without["distance"] and of["feature_weight"] == 1
    options = [*common[:2], "--held-out", "16", "--solvers", "", "--field", "none"]
    said = lmsd_("compare", tmp_path / "in.json", *options)
    (row,) = [line for line in said.splitlines() if line.startswith(str(tmp_path))]
    assert float(row.split()[-1]) > 50 * without["distance"]


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_a_blur_pyramid_and_decoded_pictures_by_hand(kind):
    array = np.arange(2 * 1 * 4 * 5, dtype=np.float32).reshape(2, 1, 4, 5)
    x = torch.from_numpy(array) if kind == "torch" else array
    blocks = array[:, :, :4, :4].reshape(2, 1, 2, 2, 2, 2).mean((3, 5))
    pyramid = np.asarray(features.blur_pyramid(3)(x))
    assert pyramid.shape == (2, 20 + 4 + 1)
    assert pyramid[:, :20] == pytest.approx(array.reshape(2, -1))
    assert pyramid[:, 20:24] == pytest.approx(2 * blocks.reshape(2, -1))
    assert pyramid[:, 24] == pytest.approx(4 * blocks.reshape(2, -1).mean(1))
    assert np.asarray(features.blur_pyramid(9)(x)).shape == (2, 25)  # no smaller one than 1 x 1
    only_coarse = np.asarray(features.blur_pyramid(2, [0, 1])(x))
    assert only_coarse[:, 20:] == pytest.approx(blocks.reshape(2, -1)) and not only_coarse[:, :20].any()
    # where a picture is smooth, every level has the same length
    smooth = np.ones((2, 3, 8, 8), np.float32)
    parts = np.split(features.blur_pyramid(2)(smooth), [3 * 64], axis=1)
    assert np.linalg.norm(parts[0]) == pytest.approx(np.linalg.norm(parts[1]))

    halved = np.asarray(features.decoded(lambda x: x * 10, 2)(x))
    assert halved == pytest.approx(10 * blocks)


def test_features_of_a_module_are_of_the_kind_and_number_of_what_it_is_given():
    layers = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 5), torch.nn.Dropout(0.9)).double()
    of = features.module(layers, scale=2.0)
    array = np.random.default_rng(0).normal(size=(4, 3, 2, 2)).astype(np.float32)
    wanted = 2 * layers[1](torch.from_numpy(array).double().flatten(1))
    by_numpy, by_torch = of(array), of(torch.from_numpy(array))
    assert by_numpy.dtype == np.float32 and by_torch.dtype == torch.float32 and not by_torch.requires_grad
    assert by_numpy == pytest.approx(wanted.detach().numpy(), rel=1e-5)
    assert by_torch.numpy() == pytest.approx(by_numpy)
    joined = features.module(lambda x: (x[:, :1], x))(array)
    assert joined.shape == (4, 4 + 12)


def test_helpers_refuse_what_they_cannot_do():
    for words, make in {
        "levels is 0": lambda: features.blur_pyramid(0),
        "2 weights for 3 levels": lambda: features.blur_pyramid(3, [1, 2]),
        r"shape \[2, 3\]": lambda: features.blur_pyramid()(np.zeros((2, 3))),
        "factor is 0": lambda: features.decoded(abs, 0),
        "factor is 5; for pictures of 4x4": lambda: features.decoded(abs, 5)(np.zeros((2, 1, 4, 4))),
        "scale is 0": lambda: features.module(abs, 0),
    }.items():
        with pytest.raises(ValueError, match=words):
            make()
