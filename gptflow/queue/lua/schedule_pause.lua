-- Let a schedule rest, or go on. What would have fired in between is not made up for.
--
-- KEYS: the schedule's key
-- ARGV: prefix, 1 to let it rest or 0
-- Returns 1, or 0 if it was so already.
local key, rest = KEYS[1], ARGV[2] == '1'
if rest == (call('HEXISTS', key, 'paused') == 1) then return 0 end
if rest then
  call('HSET', key, 'paused', text(now()))
else
  call('HDEL', key, 'paused', 'held')
  call('HSET', key, 'mark', text(now()))
end
return 1
