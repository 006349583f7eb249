# dreamd with vLLM on the CPU. Build where pip can find PyTorch's CPU builds, for instance
#   docker build --build-arg PIP_EXTRA_INDEX_URL=<PyTorch's index of CPU builds> -t dreamd .
# and run with a volume for the state:
#   docker run --rm -v dreamd:/var/lib/dreamd dreamd init --small-model
#   docker run --init --stop-timeout 300 -v dreamd:/var/lib/dreamd dreamd
FROM python:3.11-slim

# libnuma1 for vLLM's CPU kernels; a compiler for what torch and Triton compile at run time; bubblewrap for code checks
# (it needs user namespaces in the container; without them code checks say skipped).
RUN apt-get update \
    && apt-get install -y --no-install-recommends bubblewrap gcc g++ libnuma1 \
    && rm -rf /var/lib/apt/lists/*

# Configuration, state and the libraries' caches are in the volume; the program cannot write anywhere else.
RUN useradd --system --create-home --home-dir /var/lib/dreamd dreamd
WORKDIR /opt/dreamd

ARG PIP_EXTRA_INDEX_URL
ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1

# The packages first: they change rarely, and are 3.8 GB.
COPY requirements/ requirements/
RUN pip install --no-deps -r requirements/cpu.lock && python requirements/check_install.py

COPY pyproject.toml README.md LICENSE ./
COPY daemon/ daemon/
COPY migrations/ migrations/
RUN pip install --no-deps .

USER dreamd
WORKDIR /var/lib/dreamd
VOLUME /var/lib/dreamd
# SIGTERM lets a claimed cycle publish first: give it as long as the systemd unit does.
STOPSIGNAL SIGTERM
ENTRYPOINT ["dreamd"]
CMD ["run"]
