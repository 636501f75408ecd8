-- The twin of the PostgreSQL migration of the same number, which argues. SQLite has one writer at a time,
-- so the next number is simply one more than the greatest. The index holds the primary key, the hash, so
-- a look that finds nothing reads one page.

alter table api_keys add column change integer not null default 0;

create index api_keys_change on api_keys (change);
