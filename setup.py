"""Metadata of metarec; build system and tool settings are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import Extension, find_packages, setup

ROOT = Path(__file__).parent
TEST = [
    "hypothesis>=6.100",
    "optuna>=4",  # examples/search.py; its SQLAlchemy is the local store of MLflow
    "pytest>=8",
    "torchmetrics>=1.4",
    # The GPU kernels are tested in its interpreter; CUDA builds of torch bring it along.
    "triton>=3.5; platform_system == 'Linux' and platform_machine == 'x86_64'",
]

# Plain C without Python.h, loaded by ctypes. Where it does not compile, metarec does without it, only slower on a CPU.
KERNEL = Extension(
    "metarec.meta._encoder_kernel",
    ["metarec/meta/encoder_kernel.c"],
    depends=[f"metarec/meta/encoder_{part}.h" for part in ("kernel", "second", "float")],
    extra_compile_args=["-O3", "-g0", "-fno-math-errno", "-pthread"],
    extra_link_args=["-pthread"],
    libraries=["m"],
    optional=True,
)


def version() -> str:
    text = (ROOT / "metarec" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if found is None:
        raise ValueError('metarec/__init__.py: expected a line __version__ = "X.Y.Z", found none')
    return found.group(1)


setup(
    name="metarec",
    version=version(),
    description="Cold-start sequential recommendation by meta-learning, with a batched inner loop, in PyTorch",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="metarec authors",
    license_expression="MIT",
    license_files=["LICENSE"],
    packages=find_packages(include=["metarec", "metarec.*"]),
    package_data={"metarec": ["py.typed"], "metarec.datasets": ["files/**"]},
    entry_points={"console_scripts": ["metarec=metarec.__main__:main"]},
    ext_modules=[KERNEL],
    python_requires=">=3.11",
    install_requires=[
        "torch>=2.11",
        "numpy>=1.26.4",
        "narwhals>=2.0",
        "polars>=1.30",
        "safetensors>=0.8",
        "tqdm>=4.66",
        "matplotlib>=3.9",
    ],
    extras_require={
        # What `import learn2learn` needs. pip cannot build learn2learn 0.2.0 itself as a dependency
        # (its shipped C is stale), nor are all its declared requirements needed: `make learn2learn` does both.
        "learn2learn-needs": ["gym>=0.26", "pillow>=10", "requests>=2.31", "scipy>=1.13", "tqdm>=4.66"],
        # Builds against the installed torch: pip install --no-build-isolation ".[scatter]", or `make scatter`.
        "scatter": ["torch-scatter>=2.1.2"],
        # On a CPU build of torch, timm wants the torchvision that `make encoders` takes.
        "encoders": ["pillow>=10", "sentence-transformers>=5", "timm>=1.0.15"],
        "serve": [
            "fastapi>=0.115",
            "httptools>=0.6.4",
            "prometheus-client>=0.21",
            "pydantic>=2.8",
            "uvicorn>=0.34",
            "uvloop>=0.21; platform_system != 'Windows'",
        ],
        # Neighbours of 100,000 items and more on a CPU; without it they are exact, and take hours for a million.
        "index": ["faiss-cpu>=1.10"],
        "export": ["onnx>=1.18", "onnxruntime>=1.21", "onnxscript>=0.3"],
        "loggers": ["mlflow-skinny>=3.1", "tensorboard>=2.19", "wandb>=0.20"],
        "demo": ["streamlit>=1.40"],
        # With the extra serve, whose modules have pages too.
        "docs": ["furo>=2025.9", "latex2mathml>=3.78", "myst-parser>=5", "pandas>=3", "sphinx>=9"],
        # What runs examples/tour.ipynb.
        "notebook": ["ipykernel>=7", "nbclient>=0.11"],
        # The tools that compile learn2learn and torch-scatter.
        "build": ["cython>=3", "ninja>=1.11", "setuptools>=77", "wheel>=0.43"],
        "test": TEST,
        "dev": [*TEST, "build>=1.2", "mypy>=1.15", "pytest-cov>=7", "ruff>=0.11"],
    },
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Programming Language :: Python :: 3.14",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    keywords="recommender-systems cold-start meta-learning maml sequential-recommendation multimodal",
    zip_safe=False,
)
