# The command without the GPU, in an image with nothing else:
#   docker build -t tensorcarve .
#   docker run --rm -v "$PWD:/work" tensorcarve recover /work/memory.lime -o /work/out
FROM rust:1-bookworm AS build
WORKDIR /source
COPY . .
# Statically linked, so that the image needs no system.
RUN RUSTFLAGS='-C target-feature=+crt-static' cargo build --release --no-default-features --target x86_64-unknown-linux-gnu \
    && mkdir -p /root-of-image/tmp \
    && cp target/x86_64-unknown-linux-gnu/release/tensorcarve /root-of-image/

FROM scratch
COPY --from=build /root-of-image /
ENTRYPOINT ["/tensorcarve"]
