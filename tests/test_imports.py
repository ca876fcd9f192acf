"""The design's table, read off the imports: who may import what, and nothing from above."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "flowbench"
LAYERS = [
    ["errors", "archive", "atomic", "seeding"],
    ["terminal", "means", "config", "watch"],
    ["space", "parsing", "schema"],
    ["study"],
    ["kernels"],
    ["transforms", "orders", "evaluation.likelihood"],
    ["vit", "distribution"],
    ["size", "decoding"],
    ["flow"],
    ["pretrained", "capture"],
    ["data", "tracking"],
    ["evaluation"],
    ["module", "progress"],
    ["callbacks"],
    ["checkpoint", "recording"],
    ["trainer", "measure"],
    ["experiment", "pretrained.__main__"],
    ["api"],
    ["timing", "inspection", "importing", "registry"],
    ["sweep", "report"],
    ["bench"],
    ["__main__"],
]
"""Lowest first; a module imports from its own package and from the layers below."""

ONLY = {
    "matplotlib": ["report", "bench.bars"],
    "optuna": ["sweep"],
    "submitit": ["sweep.jobs"],
    "mlflow": ["tracking", "registry"],
    "torch_fidelity": ["evaluation"],
    "lightning": [
        *("module", "callbacks", "checkpoint", "data.module", "experiment", "progress"),
        *("recording", "trainer"),
    ],
    "jsonargparse": ["parsing"],
}
PURE = [
    "kernels",
    "transforms",
    "vit",
    "orders",
    "decoding",
    "distribution",
    "flow",
    "evaluation.likelihood",
    "means",
    "seeding",
    "capture",
]
LIGHT = ["errors", "terminal", "config", "parsing", "schema", "space", "study", "__main__"]

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
    if path != ROOT / "__init__.py"
}


def imports(module: str, everywhere: bool = True) -> set[str]:
    """Names that a module imports; or only those that it imports whenever it is imported."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if not is_script(node)]
    nodes = list(ast.walk(tree)) if everywhere else tree.body
    found = {name.name for node in nodes if isinstance(node, ast.Import) for name in node.names}
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            inside = f"{node.module}."
            submodules = {f"{inside}{name.name}" for name in node.names}
            known = {f"flowbench.{name}" for name in MODULES}
            found |= (submodules & known) or {str(node.module)}
    return found


def is_script(node: ast.stmt) -> bool:
    """Whether this is what only ``python -m`` runs."""
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


def ours(module: str, everywhere: bool = True) -> set[str]:
    names = imports(module, everywhere)
    return {name.removeprefix("flowbench.") for name in names if name.startswith("flowbench.")}


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def layer(module: str) -> int:
    """The layer of the longest entry that the module is in."""
    entries = [
        (len(e), n) for n, entries in enumerate(LAYERS) for e in entries if within(module, e)
    ]
    assert entries, f"{module} is in no layer"
    return max(entries)[1]


def test_the_package_imports_nothing_when_it_is_imported() -> None:
    tree = ast.parse((ROOT / "__init__.py").read_text())
    now = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert [getattr(node, "module", None) for node in now] == ["importlib", "typing"]


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_below(module: str) -> None:
    package = module.partition(".")[0]
    for name in ours(module):
        assert within(name, package) or layer(name) < layer(module), name


@pytest.mark.parametrize("library", ONLY)
def test_a_library_is_imported_in_its_place_only(library: str) -> None:
    users = {m for m in MODULES if any(within(name, library) for name in imports(m))}
    assert {user for user in users if not any(within(user, p) for p in ONLY[library])} == set()


@pytest.mark.parametrize("module", [m for m in MODULES if any(within(m, p) for p in PURE)])
def test_the_mathematics_is_pure_torch(module: str) -> None:
    allowed = {"torch", *sys.stdlib_module_names}
    allowed |= {"kernels.rqs_gpu": {"triton"}, "transforms.zuko": {"zuko"}}.get(module, set())
    foreign = {name for name in imports(module) if name.partition(".")[0] not in allowed}
    known = {f"flowbench.{name}" for name in MODULES if any(within(name, p) for p in PURE)}
    assert foreign <= known | {"flowbench.errors"}


@pytest.mark.parametrize("module", LIGHT)
def test_what_every_command_imports_is_light(module: str) -> None:
    for name in imports(module, everywhere=False):
        library = name.partition(".")[0]
        assert library in {"yaml", "flowbench", *sys.stdlib_module_names}, name
    assert {name for name in ours(module, everywhere=False) if name not in LIGHT} == set()
