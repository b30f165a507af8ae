"""Sections on disk: a SpatialData store that appears whole or not at all, and is checked when read."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import socket
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from superst_monai.data.preflight import Report, preflight
from superst_monai.data.section import SPOT_COLUMNS, Section
from superst_monai.errors import ResolutionError, ShapeError, StoreError

if TYPE_CHECKING:  # spatialdata takes seconds to import, so functions import it when they need it
    from anndata import AnnData
    from spatialdata import SpatialData

ATTRS = "superst_monai"
FORMAT_VERSION = 1
