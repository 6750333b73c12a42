"""Register, find, read, check, augment and make datasets.

- `AnosegDatasetMapper`: turns a dataset dict into what the network takes.
- `Augmentation`: colours, scale, flip and crop, as EoMT trains.
- `build_train_loader`: the endless training loader, which can start at any batch.
- `build_test_loader`: each image of one dataset once, over all processes.
- `Dataset`: where the files of one dataset can be, and what its labels mean.
- `DATASETS`: every registered `Dataset` by name.
- `register_all`, `register_cards`, `register_dataset`: add datasets to detectron2's catalogs.
- `class_colors`: names and colours of the classes that a model knows.
- `LABEL_RULES`: what the values of each label format mean.
- `load_label`: reads a label file as train ids.
- `read_image`, `read_label`, `write_image`: read and write pixels.
- `check_dataset`: checks one dataset, file by file.
"""

from anoseg_d2.utils.index import lazy_index

# Resolved on first use, so that `cut_paste` and the readers import without detectron2.
__all__, __getattr__, __dir__ = lazy_index(
    __name__,
    {
        "dataset_mapper": ["AnosegDatasetMapper"],
        "augmentation": ["Augmentation"],
        "loader": ["build_train_loader", "build_test_loader"],
        "dataset": ["Dataset"],
        "builtin": ["DATASETS", "register_all", "register_cards", "register_dataset"],
        "class_colors": ["class_colors"],
        "label_rules": ["LABEL_RULES", "load_label"],
        "image_io": ["read_image", "read_label", "write_image"],
        "dataset_check": ["check_dataset"],
    },
)
