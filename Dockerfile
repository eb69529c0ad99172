# One image for every process; deploy/compose.yaml and deploy/kubernetes/ have the commands.
#
#   docker build --tag blacksmith .
#
# It holds the example of this repository. For a project of your own, build only the package,
# `docker build --target package --tag blacksmith-package .`, and begin your Dockerfile with
# `FROM blacksmith-package` and `COPY . /app`.

FROM python:3.13-slim-bookworm AS build
WORKDIR /build
COPY pyproject.toml README.md LICENSE ./
COPY blacksmith_dagster blacksmith_dagster
RUN python -m venv /venv && /venv/bin/pip install --no-cache-dir '.[all,demo]'

FROM python:3.13-slim-bookworm AS package
RUN useradd --system --uid 10001 --home-dir /tmp --shell /usr/sbin/nologin blacksmith \
    && install --directory --owner blacksmith /var/lib/blacksmith /var/lib/dagster
COPY --from=build /venv /venv
# Nothing below / is written but /tmp, /var/lib/blacksmith and /var/lib/dagster, which Dagster's
# processes share: the output of runs is there.
ENV PATH=/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    MPLCONFIGDIR=/tmp/matplotlib \
    BLACKSMITH_HOME=/var/lib/blacksmith \
    DAGSTER_HOME=/app/deploy
WORKDIR /app
USER 10001
CMD ["blacksmith", "--help"]

FROM package
COPY pyproject.toml definitions.py ./
COPY assets assets
COPY sensors sensors
COPY migrations migrations
COPY deploy/dagster.yaml deploy/workspace.yaml deploy/
