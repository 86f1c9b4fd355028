# The daemon, for HSMs on other hosts (`keyway node`). A vendor's library for HSMs beside the daemon is added in an image
# made FROM this one, or mounted.
ARG BASE=debian:bookworm-slim
FROM $BASE
RUN groupadd --system --gid 10001 keyway \
 && useradd --system --uid 10001 --gid keyway --home-dir /var/lib/keyway --no-create-home --shell /usr/sbin/nologin keyway \
 && install -d -o keyway -g keyway -m 0700 /var/lib/keyway /etc/keyway /run/keyway
COPY keyway /usr/local/bin/keyway
USER keyway
WORKDIR /var/lib/keyway
VOLUME ["/var/lib/keyway"]
EXPOSE 50051 8080
HEALTHCHECK --interval=2s --timeout=3s --start-period=5s --retries=3 CMD ["keyway", "--addr", "unix:/run/keyway/keyway.sock", "health"]
ENTRYPOINT ["keyway"]
CMD ["serve", "--config", "/etc/keyway/keyway.toml"]
