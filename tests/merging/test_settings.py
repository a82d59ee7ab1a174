"""What a merge is asked for: in Python, in gin, and in mergekit's files."""

import gin
import pytest

from aya_jax.errors import AyaError
from aya_jax.merging.mergekit import read_mergekit
from aya_jax.merging.settings import MergeConfig, Slice, merge_config, resolved

GATE = "model.layers.1.mlp.gate_proj.weight"
QUERY = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture(autouse=True)
def _empty_gin():
    gin.clear_config()
    yield
    gin.clear_config()


@pytest.fixture
def folders(tmp_path):
    for name in ("base", "a", "b"):
        (tmp_path / name).mkdir()
    return tmp_path


def read(folder, text):
    (folder / "merge.yml").write_text(text)
    return read_mergekit(folder / "merge.yml")


# By hand, after mergekit's `evaluate_setting`.
@pytest.mark.parametrize(
    ("parameter", "depth", "value"),
    [
        (0.3, 0.5, 0.3),
        ([0.0, 1.0], 0.25, 0.25),
        ([0.0, 0.5, 1.0], 0.5, 0.5),
        ([0, 10, 40], 0.75, 25),
        ([0.2], 0.9, 0.2),
        ([1, 3], 1.0, 3),
        ([{"filter": "self_attn", "value": [0, 1]}, {"value": 0.5}], 0.75, 0.5),
        ([{"filter": "mlp", "value": [0, 1]}, {"value": 0.5}], 0.75, 0.75),
        ({"filter": "*", "value": 7}, 0.0, 7),
        ([{"filter": "norm", "value": 1}], 0.0, None),
    ],
)
def test_a_parameter_is_what_mergekit_makes_of_it(parameter, depth, value):
    assert resolved(parameter, GATE, depth, "weight") == (
        pytest.approx(value) if value is not None else None
    )


def test_gradients_run_over_the_layers_and_begin_outside_of_them():
    config = merge_config(models=["a", "b"], method="slerp", weights=[[1, 0], [0, 1]])
    found = [config.settings(GATE, layer, 5).weights for layer in range(5)]
    assert found == [(1 - i / 4, i / 4) for i in range(5)]
    assert config.settings("model.embed_tokens.weight", None, 1).weights == (1, 0)
    assert config.settings("model.norm.weight", None, 1).weights == (1, 0)
    # As in mergekit, the only layer of a stack is its last.
    assert config.settings(GATE, 0, 1).weights == (0, 1)


def test_without_settings_they_are_the_methods():
    config = merge_config(models=["a", "b", "c"], method="ties", base="base")
    settings = config.settings(GATE, 0, 2)
    assert settings.weights == (1 / 3,) * 3 and settings.density == (0.5,) * 3
    assert settings.normalize and settings.scale == 1.0
    assert (
        not merge_config(models=["a"], base="b", method="dare_ties").settings(GATE, 0, 1).normalize
    )


def test_gin_gives_them():
    gin.parse_config(
        """
        merge.method = 'della'
        merge.weights = [0.7, [{'filter': 'mlp', 'value': 0.1}, {'value': 0.3}]]
        merge.density = [0.4, 0.6]
        merge.scale = 1.5
        """
    )
    config = merge_config(models=["a", "b"], base="c")
    found = config.settings(GATE, 1, 3)
    assert found.weights == (0.7, 0.1) and found.density == pytest.approx((0.5, 0.5))
    assert found.scale == 1.5 and found.epsilon == (0.15, 0.15)
    assert config.settings(QUERY, 1, 3).weights == (0.7, 0.3)


def test_a_density_for_all_merges_of_a_recipe_is_none_of_linear():
    assert merge_config(models=["a"], density=0.2).settings(GATE, 0, 1).density == ()


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"models": []}, "no model to merge"),
        ({"weights": [1.0]}, "1 weights for 2 models"),
        ({"method": "tise"}, "did you mean 'ties'"),
        ({"scale": 2.0}, "'linear' has no 'scale'"),
        ({"vocabulary": "bass"}, "did you mean 'base'"),
        ({"dtype": "float23"}, "did you mean 'float32'"),
        ({"form": "ayah"}, "did you mean 'aya'"),
    ],
)
def test_what_no_merge_can_be_asked_for(asked, told):
    with pytest.raises(AyaError, match=told):
        merge_config(**{"models": ["a", "b"], **asked})


@pytest.mark.parametrize(
    ("parameter", "told"),
    [
        ("0.5", "'0.5' must be a number"),
        ([], "is no number"),
        ([0.1, True], "must be a number"),
        ([{"filter": "mlp"}], "must have a 'value'"),
        ([0.1, {"value": 1}], "must have a 'value'"),
        ([{"value": 1}, {"filter": "mlp", "value": {"value": 1}}], "must be a number"),
    ],
)
def test_parameters_that_are_none(parameter, told):
    with pytest.raises(AyaError, match=f"weight: .*{told}"):
        resolved(parameter, GATE, 0.5, "weight")
    with pytest.raises(AyaError, match=told):
        merge_config(models=["a"], weights=[parameter])


def test_a_weight_that_some_tensor_lacks_is_told():
    config = merge_config(models=["a", "b"], weights=[0.5, [{"filter": "mlp", "value": 0.5}]])
    assert config.settings(GATE, 0, 2).weights == (0.5, 0.5)
    with pytest.raises(AyaError, match=f"no weight of b for {QUERY}; give"):
        config.settings(QUERY, 0, 2)


# mergekit's files.


def test_models_with_parameters_of_their_own(folders):
    config = read(
        folders,
        """
merge_method: ties
base_model: base
models:
  - model: base
  - model: a
    parameters:
      density: [1, 0.7, 0.1]
      weight: 1.0
  - model: b
    parameters:
      weight:
        - filter: mlp
          value: 0.5
        - value: 0
parameters:
  normalize: true
  int8_mask: true
  density: 0.33
  lambda: 1.25
dtype: float16
tokenizer_source: union
""",
    )
    assert config.models == (str(folders / "a"), str(folders / "b"))
    assert config.base == str(folders / "base")
    assert (config.method, config.dtype, config.vocabulary) == ("ties", "float16", "union")
    found = config.settings(GATE, 1, 3)
    assert found.weights == (1.0, 0.5) and found.density == (0.7, 0.33)
    assert found.normalize and found.scale == 1.25
    assert config.settings(QUERY, 1, 3).weights == (1.0, 0.0)


def test_slerp_goes_from_the_base_whatever_the_order(folders):
    text = """
slices:
  - sources:
      - model: b
        layer_range: [0, 4]
      - model: a
        layer_range: [0, 4]
merge_method: slerp
base_model: a
parameters:
  t:
    - filter: self_attn
      value: [0, 0.5, 0.3, 0.7]
    - filter: mlp
      value: [1, 0.5, 0.7, 0.3]
    - value: 0.5
dtype: bfloat16
"""
    config = read(folders, text)
    assert config.models == (str(folders / "a"), str(folders / "b"))
    with pytest.raises(AyaError, match="t is missing"):
        read(folders, text[: text.index("parameters")])
    assert config.settings(QUERY, 2, 4).weights == pytest.approx((0.7, 0.3))
    assert config.settings(GATE, 1, 4).weights == pytest.approx((0.5, 0.5))
    assert config.settings("model.norm.weight", None, 1).weights == (0.5, 0.5)
    with pytest.raises(AyaError, match="no slice has layer 4"):
        config.settings(GATE, 4, 5)


def test_slices_that_follow_each_other_have_gradients_of_their_own(folders):
    config = read(
        folders,
        """
slices:
  - sources:
      - {model: a, layer_range: [0, 2], parameters: {weight: 1}}
      - {model: b, layer_range: [0, 2], parameters: {weight: 3}}
  - sources:
      - {model: a, layer_range: [2, 5]}
      - {model: b, layer_range: [2, 5], parameters: {weight: [0, 1]}}
    parameters: {weight: 2}
merge_method: linear
""",
    )
    found = [config.settings(GATE, layer, 5) for layer in range(5)]
    assert [each.weights for each in found] == [(1, 3), (1, 3), (2, 0), (2, 0.5), (2, 1)]
    # mergekit divides by their sum unless it is told not to.
    assert all(each.normalize for each in found)
    assert config.settings("model.embed_tokens.weight", None, 1).weights == (1, 3)
    assert config.settings("lm_head.weight", None, 1).weights == (2, 0)


def test_a_slice_or_model_comes_before_the_merge_where_its_filters_apply(folders):
    config = read(
        folders,
        """
slices:
  - sources:
      - {model: a, layer_range: [0, 3], parameters: {weight: [{filter: q_proj, value: 9}]}}
      - {model: b, layer_range: [0, 3]}
    parameters:
      weight: [{filter: gate, value: [0, 1]}]
      density: {filter: gate, value: 1e-1}
parameters:
  weight: [{filter: norm, value: 7}, {value: [2, 3]}]
  density: [{filter: q_proj, value: 0.4}]
base_model: base
merge_method: dare_ties
""",
    )
    gate, query = config.settings(GATE, 1, 3), config.settings(QUERY, 1, 3)
    assert gate.weights == (0.5, 0.5) and query.weights == (9, 2.5)
    # 1e-1 is a text to YAML 1.1, and a number to mergekit, which keeps everything where nothing is said.
    assert gate.density == (0.1, 0.1) and query.density == (0.4, 0.4)
    assert config.settings("model.norm.weight", None, 1).weights == (7, 7)
    assert config.settings("model.norm.weight", None, 1).density == (1.0, 1.0)


def test_a_base_is_one_of_the_models_of_methods_without_differences(folders):
    models = "models: [{model: a}, {model: b}]\nbase_model: base\nparameters: {weight: 1}\n"
    config = read(folders, "merge_method: linear\ntokenizer_source: base\n" + models)
    assert [path.rsplit("/")[-1] for path in config.models] == ["a", "b", "base"]
    assert config.base == config.models[2] and config.vocabulary == "base"
    one = "models: [{model: b}]\nbase_model: a\nparameters: {t: 0.25}\n"
    config = read(folders, "merge_method: slerp\n" + one)
    assert [path.rsplit("/")[-1] for path in config.models] == ["a", "b"]
    assert config.settings(GATE, 0, 2).weights == (0.75, 0.25)
    config = read(folders, f"merge_method: ties\ntokenizer: {{source: {folders}/base}}\n" + models)
    assert [path.rsplit("/")[-1] for path in config.models] == ["a", "b"]
    assert config.vocabulary == "base"


def test_what_a_method_has_no_use_for_is_passed_over_as_by_mergekit(folders):
    config = read(
        folders,
        """
merge_method: model_stock
base_model: base
models: [{model: a}, {model: b, parameters: {weight: 0.7, density: 0.5}}]
parameters: {int8_mask: true, normalize: false, filter_wise: false, t: 0.5}
""",
    )
    assert config.settings(GATE, 0, 2).weights == (0.5, 0.5)


HEAD = "merge_method: linear\n"
TWO = "models: [{model: a}, {model: b}]\n"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (": no yaml: [", "cannot be read"),
        ("- a list", "must hold a mapping"),
        (TWO, "merge_method: unknown None"),
        ("merge_method: tise\n" + TWO, "did you mean 'ties'"),
        (HEAD, "needs either models or slices"),
        (HEAD + TWO + "modules: {}", "modules: not supported"),
        (HEAD + "models: [{model: nobody/7b}]", "nobody/7b is no folder"),
        (HEAD + "models: [{model: a, parameters: {wait: 1}}]", "did you mean 'weight'"),
        (HEAD + TWO + "dtype: int4", "'int4' is none of"),
        (HEAD + TWO + "chat_template: chatml", "chat_template: not supported"),
        (HEAD + TWO + "tokenizer: {tokens: {}}", "tokenizer: only its source"),
        (HEAD + TWO + "parameters: {weight: half}", "weight: 'half' must be a number"),
        ("merge_method: ties\nparameters: {rescale: true}\n" + TWO, "rescale can only be false"),
        ("merge_method: slerp\n" + TWO, "base_model is missing"),
        ("merge_method: model_stock\nparameters: {filter_wise: true}\n" + TWO, "filter_wise"),
        (
            HEAD + "slices: [{sources: [{model: a, layer_range: [4, 8]}]}]",
            "layers are not stacked anew",
        ),
        (HEAD + "slices: [{sources: [{model: a}]}]", "must have a layer_range"),
    ],
)
def test_files_that_ask_for_what_there_is_not(folders, text, told):
    with pytest.raises(AyaError, match=told) as error:
        read(folders, text)
    assert str(error.value).startswith(str(folders / "merge.yml"))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(AyaError, match="no such file"):
        read_mergekit(tmp_path / "none.yml")


def test_slices_of_other_models_are_refused():
    config = MergeConfig(("a", "b"), slices=(Slice(own=({},)),))
    with pytest.raises(AyaError, match="parameters of 1 models for 2"):
        config.check()
