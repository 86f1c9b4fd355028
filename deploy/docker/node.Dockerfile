# A node that stands for an HSM: `keyway node` beside SoftHSM2. Its data, configuration and secrets are in one volume.
ARG BASE=debian:bookworm-slim
FROM $BASE
RUN apt-get update \
 && apt-get install -y --no-install-recommends libsofthsm2 \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt /usr/share/doc /usr/share/man \
 && groupadd --system --gid 10001 keyway \
 && useradd --system --uid 10001 --gid keyway --home-dir /var/lib/keyway-node --no-create-home --shell /usr/sbin/nologin keyway \
 && install -d -o keyway -g keyway -m 0700 /var/lib/keyway-node
COPY keyway /usr/local/bin/keyway
USER keyway
WORKDIR /var/lib/keyway-node
VOLUME ["/var/lib/keyway-node"]
EXPOSE 2223 2224 2225
HEALTHCHECK --interval=2s --timeout=3s --start-period=5s --retries=3 CMD ["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/2224"]
ENTRYPOINT ["keyway"]
CMD ["node", "--config", "/var/lib/keyway-node/node.toml"]
