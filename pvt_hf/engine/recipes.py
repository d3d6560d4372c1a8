from typing import Any


def read_recipe(path: Any) -> Any:
    from pathlib import Path

    import yaml

    return yaml.safe_load(Path(path).read_text())
