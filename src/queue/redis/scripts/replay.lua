-- replay(id...) -> n: what is dead is due again now, as if it had never been attempted.
check_types()
open_for_writing()
local n = 0
for _, id in ipairs(ARGV) do
  if redis.call('ZSCORE', DEAD, id) then
    redis.call('ZADD', RETRY, now, id)
    redis.call('ZREM', DEAD, id)
    -- A record, for without one the retries count that another service wrote into the message.
    put_off(id, nil, 0, 0, '')
    redis.call('HDEL', RECOVERED, id)
    n = n + 1
  end
end
return n
