import pickle
import subprocess
import sys

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from skmrr import FeatureExtractor


def n_hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_features_are_the_layers_output(net, digits):
    X = digits[0][:20]
    features = FeatureExtractor(net, "4", batch_size=7).fit_transform(X)
    with torch.no_grad():
        expected = net[:5](torch.as_tensor(X))
    np.testing.assert_allclose(features, expected, atol=1e-6)
    assert features.dtype == np.float32


def test_several_layers_are_concatenated_under_their_names(net, digits):
    extractor = FeatureExtractor(net, ["6", "0"], pooling="mean").set_output(transform="pandas")
    frame = extractor.fit_transform(digits[0][:3])
    assert isinstance(frame, pd.DataFrame)
    assert list(frame.columns) == [f"6_{i}" for i in range(10)] + [f"0_{i}" for i in range(8)]
    with torch.no_grad():
        maps = net[0](torch.as_tensor(digits[0][:3]))
    np.testing.assert_allclose(frame.iloc[:, 10:], maps.mean((2, 3)), atol=1e-6)


def test_of_a_layer_called_twice_the_last_call_counts():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.doubling = nn.Linear(2, 2, bias=False)
            self.doubling.weight.data = 2 * torch.eye(2)

        def forward(self, x):
            return self.doubling(self.doubling(x))

    X = np.ones((3, 2), dtype=np.float32)
    np.testing.assert_allclose(FeatureExtractor(Twice(), "doubling").fit_transform(X), 4 * X)


def test_unknown_layer_names_those_there_are(net, digits):
    with pytest.raises(ValueError, match=r"layer='fc9' is not in the model; its layers are: 0, 1"):
        FeatureExtractor(net, "fc9").fit(digits[0])


def test_rows_that_the_model_cannot_take_name_the_cure(net, digits):
    with pytest.raises(ValueError, match=r"model cannot take rows of shape \(64,\): .*input_shape"):
        FeatureExtractor(net, "4").fit(digits[0].reshape(-1, 64))


def test_layer_outside_the_forward_pass(digits, make_net):
    net = make_net()
    net.unused = nn.Identity()
    net.forward = lambda x: nn.Sequential.forward(net[:7], x)
    with pytest.raises(ValueError, match="took no part"):
        FeatureExtractor(net, "unused").fit(digits[0])


def test_tuple_output_names_the_cure():
    lstm = nn.Sequential(nn.LSTM(3, 2))
    with pytest.raises(TypeError, match="name a layer inside it"):
        FeatureExtractor(lstm, "0").fit(np.ones((4, 3), dtype=np.float32))


def test_no_hook_and_no_mode_outlives_a_call_nor_an_exception(digits, make_net):
    net = make_net().train()
    net[4].eval()
    modes = [m.training for m in net.modules()]
    extractor = FeatureExtractor(net, "4").fit(digits[0])
    extractor.transform(digits[0][:10])
    with pytest.raises(ValueError, match="not in the model"):
        FeatureExtractor(net, ["4", "nowhere"]).fit(digits[0])
    with pytest.raises(RuntimeError):
        extractor.reader_(torch.zeros(2, 3, 8, 8))
    assert n_hooks(net) == 0
    assert [m.training for m in net.modules()] == modes


def test_batch_size_and_row_order_change_nothing(net, digits, rng):
    X = digits[0][:100]
    order = rng.permutation(100)
    whole = FeatureExtractor(net, "4").fit_transform(X)
    split = FeatureExtractor(net, "4", batch_size=3).fit(X).transform(X[order])
    np.testing.assert_allclose(split, whole[order], atol=1e-5)


def test_two_dimensional_input_and_wrong_shapes(net, digits):
    X = digits[0][:30]
    extractor = FeatureExtractor(net, "4", input_shape=(1, 8, 8)).fit(X.reshape(30, 64))
    images = extractor.transform(X)
    np.testing.assert_allclose(extractor.transform(X.reshape(30, 64)), images, atol=1e-5)
    with pytest.raises(ValueError, match=r"input_shape=\(1, 8, 8\)"):
        extractor.transform(X[:, :, :7])
    with pytest.raises(ValueError, match=r"fitted on rows of shape \(1, 8, 8\)"):
        FeatureExtractor(net, "4").fit(X).transform(np.zeros((2, 1, 4, 16), np.float32))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite(net, digits, value):
    X = digits[0][:5].copy()
    X[3, 0, 1, 1] = value
    with pytest.raises(ValueError, match="NaN|infinity"):
        FeatureExtractor(net, "4").fit(X)


def test_pixels_outside_the_declared_range(net, digits):
    with pytest.raises(ValueError, match="divide by 255"):
        FeatureExtractor(net, "4", clip_values=(0, 1)).fit(255 * digits[0])


def test_transform_before_fit(net, digits):
    with pytest.raises(NotFittedError):
        FeatureExtractor(net, "4").transform(digits[0])


def test_clone_shares_the_network(net):
    assert clone(FeatureExtractor(net, "4")).model is net


def test_predict_gives_the_networks_labels(net, digits):
    X, y = digits
    assert np.mean(FeatureExtractor(net, "4").fit(X).predict(X[1000:]) == y[1000:]) > 0.9


def test_hash_is_stable_and_depends_on_the_weights(net, make_net):
    one, other = (FeatureExtractor(make_net(seed), "4") for seed in (0, 1))
    assert joblib.hash(one) == joblib.hash(FeatureExtractor(make_net(0), "4"))
    assert joblib.hash(one) == joblib.hash(clone(one))
    assert joblib.hash(one) == joblib.hash(pickle.loads(pickle.dumps(one)))
    assert joblib.hash(one) != joblib.hash(other)


def test_hash_is_the_same_in_another_process():
    code = (
        "import joblib, torch\nfrom torch import nn\nfrom skmrr import FeatureExtractor\n"
        "torch.manual_seed(0)\n"
        "print(joblib.hash(FeatureExtractor(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), '0')))"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    assert runs[0].stdout == runs[1].stdout != ""


def test_pickle_keeps_features_and_parameters(net, digits):
    extractor = FeatureExtractor(net, "4").fit(digits[0])
    copy = pickle.loads(pickle.dumps(extractor))
    X = digits[0][:10]
    np.testing.assert_array_equal(copy.transform(X), extractor.transform(X))
    assert isinstance(copy.model[0].weight, nn.Parameter)
    assert copy.model[0].weight.requires_grad


def test_pipeline_memory_hits(digits, make_net, tmp_path, monkeypatch):
    calls = []
    transform = FeatureExtractor.transform
    monkeypatch.setattr(
        FeatureExtractor, "transform", lambda self, X: calls.append(1) or transform(self, X)
    )
    for _ in range(3):
        extractor = FeatureExtractor(make_net(), "4")
        make_pipeline(extractor, StandardScaler(), memory=str(tmp_path)).fit(digits[0])
    assert len(calls) == 1


def test_an_input_of_a_layer_is_named_so(net, digits):
    X = digits[0][:20]
    by_input, by_output = (FeatureExtractor(net, name).fit(X) for name in ("4:input", "3"))
    np.testing.assert_array_equal(by_input.transform(X), by_output.transform(X))
    assert by_input.get_feature_names_out()[0] == "4:input_0"


def test_an_output_is_kept_as_it_was_before_the_next_layer_changes_it(digits):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(72, 3))
    X = digits[0][:20]
    features = FeatureExtractor(net, "0").fit_transform(X)
    with torch.no_grad():
        expected = net[0](torch.as_tensor(X)).flatten(1)
    np.testing.assert_allclose(features, expected, atol=1e-6)
    assert features.min() < 0


@pytest.mark.parametrize("layer", ["4", "_orig_mod.4"])
def test_a_compiled_network_is_unwrapped(net, digits, layer):
    X = digits[0][:20]
    compiled = torch.compile(net, backend="eager")
    expected = FeatureExtractor(net, "4").fit_transform(X)
    np.testing.assert_array_equal(FeatureExtractor(compiled, layer).fit_transform(X), expected)
