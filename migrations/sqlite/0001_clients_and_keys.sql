-- Who may send and read; the twin of the PostgreSQL migration of the same number, which argues for the
-- columns. Here only what differs.
--
-- STRICT everywhere: without it a column takes any type. Times are unix microseconds, UUIDs 16 bytes.

create table clients (
    id         integer primary key check (id between 1 and 2147483647),
    name       text    not null unique,
    created_at integer not null
) strict;

-- WITHOUT ROWID: found by hash, and then the row is already there.
create table api_keys (
    hash       blob    primary key not null check (length(hash) = 32),
    prefix     text    not null unique,
    client_id  integer not null references clients (id),
    scopes     text    not null, -- words separated by a space
    rate       integer check (rate > 0),
    burst      integer check (burst > 0),
    created_at integer not null,
    expires_at integer,
    revoked_at integer
) strict, without rowid;

create table settings (
    name  text primary key not null,
    value blob not null
) strict, without rowid;

insert into settings (name, value) values ('pepper', randomblob(32));
