"""Packaging: `pip install .` in an environment of your own."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

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
    "jinja2>=3.1",
    "onnx>=1.17",  # the backbone of the model that ships comes in such a file
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
    "video": ["av>=12.0"],  # reads and writes videos
    "app": ["gradio>=6.0"],  # the page of `anoseg app`
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

CLASSIFIERS = [
    "Development Status :: 4 - Beta",
    "Environment :: Console",
    "Intended Audience :: Science/Research",
    "Operating System :: OS Independent",
    *(f"Programming Language :: Python :: 3.{minor}" for minor in range(10, 14)),
    "Topic :: Scientific/Engineering :: Artificial Intelligence",
    "Topic :: Scientific/Engineering :: Image Recognition",
    "Typing :: Typed",
]


def read_version():
    """The version that `anoseg_d2` states, read without importing it."""
    text = (ROOT / "anoseg_d2" / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "([^"]+)"', text, re.MULTILINE).group(1)


def read_readme():
    """The README for the package page, without what points into the repository."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    inside = r"\((?!https?://|#)[^)]*\)"
    text = re.sub(rf"!\[[^\]]*\]{inside}\n\n(\*\S.*?\S\*\n\n)?", "", text, flags=re.DOTALL)
    return re.sub(rf"\[([^\]]*)\]{inside}", r"\1", text)


class BuildWithConfigs(build_py):
    """Builds the package with a copy of `configs/` inside, where `find_config` looks for it.

    The recipes stay out: they run scripts of a checkout.
    """

    def run(self):
        super().run()
        if not self.editable_mode:  # an editable install reads those of the checkout
            target = Path(self.build_lib, "anoseg_d2", "configs")
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(ROOT / "configs", target, ignore=shutil.ignore_patterns("*recipe.yaml"))


setup(
    name="anoseg-d2",
    version=read_version(),
    description="Road-anomaly segmentation with EoMT mask classification on Detectron2",
    long_description=read_readme(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    author="anoseg_d2 contributors",
    classifiers=CLASSIFIERS,
    cmdclass={"build_py": BuildWithConfigs},
    packages=find_packages(include=["anoseg_d2", "anoseg_d2.*"]),
    package_data={
        "anoseg_d2": [
            *("py.typed", "data/cards/*.yaml"),
            *("report/*.html", "report/*.jinja"),
            "weights/*",
        ]
    },
    entry_points={"console_scripts": ["anoseg = anoseg_d2.cli:main"]},
    python_requires=">=3.10",
    install_requires=REQUIRES,
    extras_require=EXTRAS,
)
