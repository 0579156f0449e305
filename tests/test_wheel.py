"""Installed wheel, used outside the checkout."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from PIL import Image
from skimage import data

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("configs", "projects", "proposal_cache", "weights", "LICENSE", "README.md", "pyproject.toml")

LOAD_CONFIG = """
from samcp.command_line import training_parser
from samcp.config import load_config

options = ["--config-file", "coco/panoptic/samcp_R50_12ep.yaml", "MODEL.DEVICE", "cpu"]
print(load_config(training_parser(None).parse_args(options)).MODEL.META_ARCHITECTURE)
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """Return a function that runs Python in an environment with the wheel and this environment's dependencies."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:  # building in the checkout would leave files there
        source, copy = ROOT / name, folder / "source" / name
        if source.is_dir():
            shutil.copytree(source, copy, symlinks=True, ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
        else:
            copy.parent.mkdir(exist_ok=True)
            shutil.copy(source, copy)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, folder / "source"]
    subprocess.run(build, check=True)
    [wheel] = folder.glob("*.whl")

    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    interpreter = folder / "venv" / "bin" / "python"
    # Last on sys.path, so that the wheel takes precedence over an editable installation.
    [packages] = (folder / "venv" / "lib").glob("python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    subprocess.run([*pip, "--python", interpreter, "install", "--no-deps", wheel], check=True)

    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def run(*arguments):
        done = subprocess.run(
            [interpreter, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.mark.slow
@pytest.mark.parametrize("package", ["proposal_cache", "samcp"])
def test_packages_have_the_version_of_the_wheel(python, package):
    printed = python("-c", f"import {package} as p; print(p.__file__, p.__version__)")
    path, version = printed.split()
    assert "venv" in Path(path).parts
    assert f'version = "{version}"' in (ROOT / "pyproject.toml").read_text()


@pytest.mark.slow
def test_patches_of_photos_without_further_options(python, tmp_path):
    (tmp_path / "photos").mkdir()
    Image.fromarray(data.coffee()).save(tmp_path / "photos" / "coffee.jpg")
    command = ("-m", "proposal_cache", "generate", "--images", tmp_path / "photos", "--output", tmp_path / "patches")
    assert "1 images, 240.0 patches" in python(*command)
    assert 'name": "contours' in python("-m", "proposal_cache", "info", tmp_path / "patches")


@pytest.mark.slow
def test_packaged_config(python):
    assert python("-c", LOAD_CONFIG).strip() == "SAMCP"
