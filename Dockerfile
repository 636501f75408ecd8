# One image with the one binary; the command says which service runs.

FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked --package pulsestream --bin pulsestream \
    && mkdir -p /out/data \
    && cp target/release/pulsestream /out/

# Debian and not something smaller: the binary needs glibc and zlib, both are in this image, and a shell
# is there on a bad day.
FROM debian:bookworm-slim
COPY --from=build /out/pulsestream /usr/local/bin/pulsestream
# An empty folder of the right owner: a volume mounted here inherits it.
COPY --from=build --chown=65532:65532 /out/data /data
USER 65532:65532
# Inside a container loopback reaches nobody.
ENV DATA_DIR=/data PULSESTREAM__SERVER__HOST=0.0.0.0
VOLUME /data
EXPOSE 3000 3001 3003
HEALTHCHECK --interval=5s --timeout=3s --start-period=30s --retries=3 CMD ["pulsestream", "healthcheck"]
ENTRYPOINT ["pulsestream"]
CMD ["up"]
