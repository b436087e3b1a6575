# docker build -t registrator .
FROM debian:bookworm-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends \
    gcc make musl-tools
WORKDIR /src
COPY Makefile registrator.c ./
RUN make

FROM scratch
COPY --from=build /src/registrator /bin/registrator
ENTRYPOINT ["/bin/registrator"]
