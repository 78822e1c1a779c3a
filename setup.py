"""Maps the rooms of the repository to package names; everything else is in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["fastssl", "fastssl.*"]), "fastssl.kernels", "fastssl.pipelines"],
    package_dir={"fastssl": "fastssl", "fastssl.kernels": "kernels", "fastssl.pipelines": "pipelines"},
    package_data={"fastssl.models": ["weights/*.safetensors"]},
)
