-- How far the log was stored, and what is dead; the twin of the PostgreSQL migration of the same number.

create table consumer_offsets (
    grp        text    not null,
    topic      text    not null,
    part       integer not null,
    epoch      blob    not null check (length(epoch) = 16),
    next       integer not null check (next >= 0),
    last_id    blob    check (length(last_id) = 16),
    updated_at integer not null,
    primary key (grp, topic, part)
) strict, without rowid;

create table dead_letters (
    topic      text    not null,
    part       integer not null,
    epoch      blob    not null check (length(epoch) = 16),
    off        integer not null,
    client_id  integer,
    id         blob    check (length(id) = 16),
    reason     text    not null,
    sqlstate   text,
    detail     text    not null,
    created_at integer not null,
    primary key (topic, part, epoch, off)
) strict, without rowid;

create index dead_letters_event on dead_letters (client_id, id) where id is not null;
