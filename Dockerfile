# superst on CPUs, from a checkout:
#   docker build --tag superst .
#   docker run --rm --user "$(id -u):$(id -g)" --volume "$PWD:/data" superst predict run B7.svs --out B7.maps.zarr
# All libraries are wheels, OpenSlide's among them, at the versions of requirements/constraints.txt; torch is its CPU build.

FROM python:3.11-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/superst
WORKDIR /source
COPY requirements/constraints.txt requirements/constraints.txt
RUN /opt/superst/bin/pip install --constraint requirements/constraints.txt \
        --extra-index-url https://download.pytorch.org/whl/cpu torch
COPY LICENSE README.md pyproject.toml setup.cfg ./
COPY bundles bundles
COPY superst_monai superst_monai
RUN /opt/superst/bin/pip install --constraint requirements/constraints.txt ".[onnx]"

FROM python:3.11-slim
COPY --from=build /opt/superst /opt/superst
RUN useradd --create-home --uid 1000 superst
# The home of whatever user it is run as, for what libraries cache.
ENV PATH=/opt/superst/bin:$PATH HOME=/tmp MPLCONFIGDIR=/tmp/matplotlib NUMBA_CACHE_DIR=/tmp/numba
USER superst
WORKDIR /data
ENTRYPOINT ["superst"]
CMD ["--help"]
