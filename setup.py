"""Finds the packages; everything else is declared in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["functorch_hops", "functorch_hops.*"]),
        "functorch_hops.transforms",
        *(f"functorch_hops.transforms.{name}" for name in find_packages("transforms")),
    ]
)
