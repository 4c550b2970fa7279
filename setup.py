"""Which packages a wheel holds: those in src/, and configs/. All else is in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages("src"), "fedvpa.configs"],
    package_dir={"": "src", "fedvpa.configs": "configs"},
)
