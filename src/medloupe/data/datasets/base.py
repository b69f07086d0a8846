"""The family of data sets: a value that knows how to turn a source into the native form."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from medloupe.config import ComponentConfig
from medloupe.data.dataset import Dataset, Progress
from medloupe.errors import ConfigError


class DatasetConfig(ComponentConfig, abc.ABC):
    """How one data set is prepared."""

    family: ClassVar[str] = "data set"
    table: ClassVar[Mapping[str, str]] = {
        "starter": "medloupe.data.datasets.starter:StarterConfig",
        "vqa_rad": "medloupe.data.datasets.vqa_rad:VqaRadConfig",
        "slake": "medloupe.data.datasets.slake:SlakeConfig",
        "path_vqa": "medloupe.data.datasets.path_vqa:PathVqaConfig",
        "medmnist": "medloupe.data.datasets.medmnist:MedMnistConfig",
        "vindr_cxr": "medloupe.data.datasets.vindr_cxr:VindrCxrConfig",
        "mimic_cxr": "medloupe.data.datasets.mimic_cxr:MimicCxrConfig",
        "iu_xray": "medloupe.data.datasets.iu_xray:IuXrayConfig",
        "bccd": "medloupe.data.datasets.bccd:BccdConfig",
        "covid_chestxray": "medloupe.data.datasets.covid_chestxray:CovidChestXrayConfig",
        "covid_image_repository": "medloupe.data.datasets.covid_image_repository:CovidImageRepositoryConfig",
        "msd_hippocampus": "medloupe.data.datasets.msd_hippocampus:MsdHippocampusConfig",
        "medpix": "medloupe.data.datasets.medpix:MedPixConfig",
        "mpx_single": "medloupe.data.datasets.medpix:MpxSingleConfig",
        "sa_med2d": "medloupe.data.datasets.sa_med2d:SaMed2dConfig",
        "ct_rate": "medloupe.data.datasets.ct_rate:CtRateConfig",
        "llava_pretrain": "medloupe.data.datasets.llava_pretrain:LlavaPretrainConfig",
        "llava_med_alignment": "medloupe.data.datasets.llava_med:LlavaMedAlignmentConfig",
        "llava_med_instruct": "medloupe.data.datasets.llava_med:LlavaMedInstructConfig",
        "chili_joint": "medloupe.data.datasets.chili_joint:ChiliJointConfig",
        "pyradiomics": "medloupe.data.datasets.pyradiomics:PyradiomicsConfig",
        "openslide_regions": "medloupe.data.datasets.openslide_regions:OpenslideRegionsConfig",
        "studyforrest": "medloupe.data.datasets.studyforrest:StudyforrestConfig",
        "templated_vqa": "medloupe.data.datasets.templated_vqa:TemplatedVqaConfig",
        "llava": "medloupe.data.datasets.llava:LlavaConfig",
        "native": "medloupe.data.datasets.native:NativeConfig",
        "folder": "medloupe.data.datasets.folder:FolderConfig",
    }

    @abc.abstractmethod
    def prepare(self, out: Path, *, root: Path | None, progress: Progress) -> Dataset:
        """Write the native form into the folder `out` and return it.

        `root` is where the source lies; None for data sets that are made rather than read.
        `progress(what, done, total)` is called often enough to draw a bar.
        """


def source_folder(config: DatasetConfig, root: Path | None) -> Path:
    """`root`, for data sets that are read from files.

    Raises:
        ConfigError: no root, or not a folder.
    """
    if root is None:
        raise ConfigError(
            f"the data set {config.name!r} is read from files and no folder was named",
            remedy="Pass the folder of your copy with --root",
        )
    if not root.is_dir():
        raise ConfigError("no such folder", file=str(root), remedy="Check the path after --root")
    return root
