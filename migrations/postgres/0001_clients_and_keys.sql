-- Who may send and read. Everything else refers to a client by its number.

-- The number is random and given by the server, never by a sequence: after a restored or swapped
-- database a serial number would be given twice, and one tenant would see the records another left on
-- the log. Rows are never deleted, for the same reason.
create table clients (
    id         int         primary key check (id > 0),
    name       text        not null unique,
    created_at timestamptz not null
);

-- The key itself is nowhere: only its HMAC-SHA256, by which it is found, and a prefix for people.
create table api_keys (
    hash       bytea       primary key check (octet_length(hash) = 32),
    prefix     text        not null unique,
    client_id  int         not null references clients,
    scopes     text[]      not null,
    rate       int         check (rate > 0),
    burst      int         check (burst > 0),
    created_at timestamptz not null,
    expires_at timestamptz,
    -- Kept after a revocation: `keys list` shows it, and the same key can never come back.
    revoked_at timestamptz
);

-- What the server decided once, for good.
create table settings (
    name  text  primary key,
    value bytea not null
);

-- The pepper of the key hashes: two version-4 UUIDs, 244 random bits. Made here and not by a process,
-- so that of two processes that start together neither can overwrite the other's.
insert into settings (name, value)
values ('pepper', uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()));
