# A whole development cluster in one container: `keyway dev`, whose flags are the container's. Not for real keys.
ARG BASE=debian:bookworm-slim
FROM $BASE
# procps, for pkill: tests make an HSM's process fail with it.
RUN apt-get update \
 && apt-get install -y --no-install-recommends libsofthsm2 procps \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt /usr/share/doc /usr/share/man \
 && groupadd --system --gid 10001 keyway \
 && useradd --system --uid 10001 --gid keyway --home-dir /var/lib/keyway-dev --no-create-home --shell /usr/sbin/nologin keyway \
 && install -d -o keyway -g keyway -m 0700 /var/lib/keyway-dev
COPY keyway /usr/local/bin/keyway
USER keyway
WORKDIR /var/lib/keyway-dev
VOLUME ["/var/lib/keyway-dev"]
EXPOSE 50051 8080
# Healthy once everything that --seed names is there, and connected. Until then it is starting, which may take long.
HEALTHCHECK --interval=2s --timeout=5s --start-period=300s --retries=3 CMD ["keyway", "wait", "--dev", "data", "--timeout", "3s"]
ENTRYPOINT ["keyway", "dev", "--data-dir", "data", "--grpc-addr", "0.0.0.0:50051", "--http-addr", "0.0.0.0:8080", "--insecure"]
