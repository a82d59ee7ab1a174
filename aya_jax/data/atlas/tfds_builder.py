"""The atlas as a TensorFlow Datasets builder, `aya_atlas`; TensorFlow itself is not needed.

Build it once (the whole atlas, or a part of it under a name of its own):

    python -m aya_jax.data.atlas --data_dir DIR
    python -m aya_jax.data.atlas --data_dir DIR --config small --per_language 200

and read it by index, for example into grain; the reader need not import aya_jax:

    import grain
    import tensorflow_datasets as tfds

    source = tfds.data_source("aya_atlas/small", split="train", data_dir=DIR)
    records = grain.MapDataset.source(source).seed(0).shuffle().repeat()

A recipe reads it with `source.records.source = 'tfds:aya_atlas/small'` and
`source.records.data_dir = DIR`.

What works without TensorFlow: building, `tfds.data_source`, `tfds.builder_from_directory`, slices of
splits (`train[:10%]`). What does not: `tfds.load` and `as_dataset`, which make `tf.data` pipelines
(nor could TensorFlow's users call them on this set: array_record has no `tf.data` reader). Strings
are read as UTF-8 bytes, as from any TFDS set.

Two builds with the same settings and the same Babel release give the same bytes.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import babel
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from aya_jax.data.atlas.build import Record, build
from aya_jax.errors import AyaError

DEFAULT_CONFIG = "all"
TEXTS = (
    "id",
    "language",
    "answer_language",
    "kind",
    "prompt",
    "completion",
    "concept",
    "split",
)


@dataclasses.dataclass(eq=False)
class AtlasConfig(tfds.core.BuilderConfig):
    """A part of the atlas under a name: the arguments of `aya_jax.data.atlas.build`."""

    languages: Sequence[str] | None = None
    kinds: Sequence[str] | None = None
    entities: int | None = None
    per_language: int | None = None
    cross_languages: Sequence[str] | None = None
    seed: int = 0

    def records(self, split: str) -> list[Record]:
        """Return the records of `train` or `eval`."""
        # All arguments are given, so that no gin setting changes what a name stands for.
        return build(
            split=split,
            languages=self.languages,
            kinds=self.kinds,
            entities=self.entities,
            per_language=self.per_language,
            cross_languages=self.cross_languages,
            seed=self.seed,
        )


class _SortedFieldsWriter(tfds.core.ExampleWriter):
    """Writes each example with its fields in order.

    The fields are a protobuf map, which is otherwise serialized in an order that changes from one
    process to the next.
    """

    def write(self, path: Any, examples: Iterable[tuple[Any, bytes]]) -> Any:
        """Write (key, serialized example) pairs to the shard at `path`."""
        parse = tf_example_pb2.Example.FromString
        return super().write(
            path,
            ((key, parse(data).SerializeToString(deterministic=True)) for key, data in examples),
        )


class AyaAtlas(tfds.core.GeneratorBasedBuilder):
    """Questions in 23 languages with verifiable answers; splits `train` and `eval`.

    Records lie in the order of the hash of their ids, so a slice of a split has all languages.
    """

    name = "aya_atlas"
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = (
        AtlasConfig(name=DEFAULT_CONFIG, description="Every language, kind and entity."),
    )
    # Nothing is downloaded. To look for checksums, TFDS 4.9.10 would import importlib_resources,
    # which it does not install on Python 3.9 and newer (tensorflow/datasets #11212).
    url_infos = None

    def _info(self) -> tfds.core.DatasetInfo:
        texts = {field: tfds.features.Text() for field in TEXTS}
        answers = tfds.features.Sequence(tfds.features.Text())
        return tfds.core.DatasetInfo(
            builder=self,
            description=(
                "Questions in 23 languages with verifiable answers, made from Unicode CLDR "
                f"as in Babel {babel.__version__}."
            ),
            features=tfds.features.FeaturesDict({**texts, "answers": answers}),
            supervised_keys=("prompt", "completion"),
            license="Unicode License v3 (CLDR data), Apache License 2.0 (question templates)",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, Record]]]:
        return {split: self._generate_examples(split) for split in ("train", "eval")}

    def _generate_examples(self, split: str) -> Iterator[tuple[str, Record]]:
        for record in self.builder_config.records(split):
            yield record["id"], record

    def _example_writer(self) -> tfds.core.ExampleWriter:
        return _SortedFieldsWriter(file_format=self.info.file_format)


def prepare(data_dir: str | Path, config: AtlasConfig | None = None) -> Path:
    """Build the data set under `data_dir` unless it is there, and return its own folder.

    Args:
      data_dir: where TFDS sets lie; each has its folder.
      config: which part; the whole atlas if absent.

    Raises:
      AyaError: an unknown language or kind, or a name taken by the whole atlas.
    """
    if config is not None and config.name == DEFAULT_CONFIG:
        raise AyaError(
            f"aya_atlas: '{DEFAULT_CONFIG}' is the whole atlas; name your part otherwise"
        )
    builder = AyaAtlas(data_dir=str(data_dir), config=config, file_format="array_record")
    builder.download_and_prepare()
    return Path(builder.data_dir)
