"""Write a model as one ONNX file for other runtimes.

- `ExportSpec`: inputs and outputs of the file.
- `ExportModel`: the module that is traced: images in, finished maps out.
- `export_model`: traces, writes, runs the file and compares it with the model.
- `check_file`: only the comparison.
- `ExportCheckError`: raised when the file differs from its model by more than is allowed.
"""

from anoseg_d2.utils.index import lazy_index

# Resolved on first use.
__all__, __getattr__, __dir__ = lazy_index(
    __name__,
    {
        "spec": ["ExportSpec", "ExportCheckError"],
        "graph": ["ExportModel"],
        "write": ["export_model"],
        "check": ["check_file"],
    },
)
