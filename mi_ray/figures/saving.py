"""Writes tables and other texts into the folder of their study."""

from collections.abc import Mapping

import pandas as pd

from mi_ray.figures.tables import latex, markdown
from mi_ray.store.blocks import Store


def save_texts(store: Store, study: str, files: Mapping[str, str]) -> list[str]:
    """Write text files, file name -> content; returns the paths within the store."""
    paths = {f"studies/{study}/figures/{name}": content for name, content in files.items()}
    for path, content in paths.items():
        store.write_bytes(path, content.encode())
    return list(paths)


def save_table(store: Store, study: str, name: str, facts: pd.DataFrame, text: pd.DataFrame, note: str) -> list[str]:
    """Write a table as Markdown, its facts as CSV, and the table as LaTeX; returns the paths within the store.

    text: what the table shows, all of it as text. note: how to read it, in words.
    """
    files = {"md": markdown(text, note), "csv": facts.to_csv(index=False), "tex": latex(text, note)}
    return save_texts(store, study, {f"{name}.{kind}": content for kind, content in files.items()})
