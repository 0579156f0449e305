# Image with samcp, proposal-cache and the shipped models.
#
#   docker build -t samcp .                                    for CPUs and NVIDIA GPUs
#   docker build -t samcp --build-arg TORCH_INDEX=URL .        smaller, with PyTorch's wheels for CPUs, whose URL is on
#                                                              PyTorch's page "Get started"
#   docker run --rm -v "$PWD:/data" samcp segment photo.jpg    with --gpus all on a machine with GPUs
#
# scripts/check_dockerfile.sh runs the steps without Docker.
FROM python:3.11-slim
ARG TORCH_INDEX=
RUN apt-get update && apt-get install --yes --no-install-recommends make && rm -rf /var/lib/apt/lists/*
WORKDIR /samcp
COPY . .
# Other builds of PyTorch have other hashes, and those for CPUs do not need the packages for GPUs.
RUN if [ -n "$TORCH_INDEX" ]; then grep -v -e ^nvidia- -e ^cuda- -e ^triton -e ^sal- constraints.txt >requirements.txt; fi
RUN PIP_NO_CACHE_DIR=1 PIP_EXTRA_INDEX_URL="$TORCH_INDEX" make install
ENV PATH=/samcp/.venv/bin:$PATH
# Patches of photographs are kept beside them.
ENV SAMCP_CACHE=/data/.samcp
WORKDIR /data
ENTRYPOINT ["samcp"]
CMD ["--help"]
