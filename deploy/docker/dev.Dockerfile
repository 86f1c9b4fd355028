# A whole development cluster in one container: `keyway dev`. Not for real keys.
ARG BASE=debian:bookworm-slim
FROM $BASE
RUN apt-get update \
 && apt-get install -y --no-install-recommends libsofthsm2 \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt /usr/share/doc /usr/share/man \
 && groupadd --system --gid 10001 keyway \
 && useradd --system --uid 10001 --gid keyway --home-dir /var/lib/keyway-dev --no-create-home --shell /usr/sbin/nologin keyway \
 && install -d -o keyway -g keyway -m 0700 /var/lib/keyway-dev
COPY keyway /usr/local/bin/keyway
USER keyway
WORKDIR /var/lib/keyway-dev
VOLUME ["/var/lib/keyway-dev"]
EXPOSE 50051 8080
HEALTHCHECK --interval=2s --timeout=3s --start-period=10s --retries=3 CMD ["keyway", "--addr", "unix:/var/lib/keyway-dev/data/keyway.sock", "health"]
ENTRYPOINT ["keyway"]
CMD ["dev", "--data-dir", "/var/lib/keyway-dev/data", "--grpc-addr", "0.0.0.0:50051", "--http-addr", "0.0.0.0:8080", "--insecure"]
