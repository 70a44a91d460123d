-- Say that a batch gets no more messages.
--
-- KEYS: the batch, its stream
-- ARGV: prefix, id, its total ("" for what it has), 1 if it is cancelled, seconds to keep it
-- Returns 1, or 0 where that had been said before, or -1 where there is no such batch.
local batch, stream = unpack(KEYS)
local _, id, total, cancelled, ttl = unpack(ARGV)
local held = read(batch, 'id', 'sealed', 'cancelled')
if not held.id then return -1 end
if cancelled == '1' then
  call('HSET', batch, 'cancelled', '1')
end
local open = held.sealed == '0'
if open then
  call('HSET', batch, 'sealed', '1')
  if total ~= '' and held.cancelled ~= '1' then call('HSET', batch, 'total', total) end
  -- For whoever waits for the next item: there may be none.
  call('XADD', stream, '*', 'items', '')
end
settle_batch(id, tonumber(ttl))
return open and 1 or 0
