# docker build -t registrator .
FROM debian:bookworm-slim AS build
RUN sed -i 's/^Types: deb$/Types: deb deb-src/' \
        /etc/apt/sources.list.d/debian.sources && \
    apt-get update && apt-get install -y --no-install-recommends \
        dpkg-dev gcc make musl-tools xz-utils
WORKDIR /src
RUN apt-get source bearssl
COPY Makefile registrator.c ./
RUN make

FROM scratch
COPY --from=build /src/registrator /bin/registrator
ENTRYPOINT ["/bin/registrator"]
