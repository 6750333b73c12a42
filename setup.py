"""Packaging: `pip install -e .` in an environment of your own."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent

# Detectron2 is not listed: the official one is built against the torch it runs with, so no
# version on a registry can be required. `python tools/setup_env.py --detectron2-only` adds the
# pinned wheel where none is importable. Its own requirements are listed, marked (d2).
REQUIRES = [
    "torch>=2.4",
    "torchvision>=0.19",
    "timm>=1.0.15",
    "loralib>=0.1.2",
    "numpy>=1.26",
    "scipy>=1.11",
    # Headless: no window is ever opened, and the other build of OpenCV carries Qt, which needs
    # libGL.so.1 from the system (root). Both give the same `cv2`.
    "opencv-python-headless>=4.8",
    "pillow>=10.0",
    "pycocotools>=2.0.7",
    "safetensors>=0.4",
    "PyYAML>=6.0",
    "matplotlib>=3.8",
    "tqdm>=4.66",
    "fvcore>=0.1.5.post20221221",  # (d2)
    "iopath>=0.1.9",  # (d2)
    "omegaconf>=2.1,<2.4",  # (d2)
    "hydra-core>=1.1",  # (d2)
    "yacs>=0.1.8",  # (d2)
    "cloudpickle>=2.2",  # (d2)
    "tabulate>=0.9",  # (d2)
    "termcolor>=2.0",  # (d2)
    "tensorboard>=2.15",  # (d2)
    "packaging>=23.0",  # (d2)
]

EXTRAS = {
    "export": ["onnx>=1.17", "onnxscript>=0.5", "onnxruntime>=1.20"],
    "hub": ["huggingface_hub>=0.24"],
    "hdf5": ["h5py>=3.10"],  # score maps as SegmentMeIfYouCan's code writes them
    # OpenCV reads and writes frames; this keeps the sound, and the time of every frame, too.
    "video": ["av>=12.0"],
    "test": [
        "pytest>=8.0",
        "pytest-xdist>=3.5",
        "hypothesis>=6.100",
        "scikit-learn>=1.4",
        "h5py>=3.10",
        "av>=12.0",
        "onnx>=1.17",
        "onnxscript>=0.5",
        "onnxruntime>=1.20",
        "ruff>=0.6",
    ],
}


def read_version():
    """The version that `anoseg_d2` states, read without importing it."""
    text = (ROOT / "anoseg_d2" / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "([^"]+)"', text, re.MULTILINE).group(1)


def read_readme():
    """The README, for the package page; empty in a checkout that has none."""
    readme = ROOT / "README.md"
    return readme.read_text(encoding="utf-8") if readme.exists() else ""


setup(
    name="anoseg-d2",
    version=read_version(),
    description="Road-anomaly segmentation with EoMT mask classification on Detectron2",
    long_description=read_readme(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["anoseg_d2", "anoseg_d2.*"]),
    package_data={"anoseg_d2": ["data/cards/*.yaml", "report/*.html"]},
    entry_points={"console_scripts": ["anoseg = anoseg_d2.cli:main"]},
    python_requires=">=3.10",
    install_requires=REQUIRES,
    extras_require=EXTRAS,
)
